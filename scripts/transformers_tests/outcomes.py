"""Plugin of pytest: writes the outcome of each test to the JSON file that the environment's OUTCOMES names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

OUTCOMES: dict[str, str] = {}
RANKS = ("passed", "skipped", "failed")


def pytest_runtest_logreport(report: Any) -> None:
    """Note the worst of a test's phases and subtests, under its name without the file."""
    name = report.nodeid.split("::", 1)[1]
    OUTCOMES[name] = max(OUTCOMES.get(name, RANKS[0]), report.outcome, key=RANKS.index)


def pytest_sessionfinish(session: Any) -> None:
    """Write the file, in the process that collects the reports."""
    if not hasattr(session.config, "workerinput"):
        Path(os.environ["OUTCOMES"]).write_text(json.dumps(OUTCOMES, indent=0, sort_keys=True))

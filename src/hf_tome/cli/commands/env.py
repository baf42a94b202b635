"""`hf-tome env`: versions and devices, for a bug report."""

from __future__ import annotations

import json
import sys
from typing import Any

from ..common import DebugOption, Format, FormatOption, example, pick_device
from ..tables import write_rows

EXAMPLE = example(
    "hf-tome env --format md", "prints versions and devices as a Markdown table, to be pasted into an issue."
)


def env_command(format: FormatOption = Format.table, debug: DebugOption = False) -> None:
    """Print the versions of what is installed and the device that would be used."""
    from ...evaluation.environment import describe_environment

    environment = describe_environment(pick_device("auto"))
    if format is Format.json:
        sys.stdout.write(json.dumps(environment, indent=2) + "\n")
    else:
        write_rows(_rows(environment), format)


def _rows(environment: dict[str, Any]) -> list[dict[str, Any]]:
    rest = {name: value for name, value in environment.items() if name != "packages"}
    return [{"name": name, "value": value} for name, value in {**environment["packages"], **rest}.items()]

"""What differs between the settings of a run and those that it was begun with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def describe_changes(settings: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Return which settings were others before, compared as JSON values, in words; empty where none was."""
    current, stored = json.loads(json.dumps(settings)), json.loads(json.dumps(before))
    changed = [name for name in current if current[name] != stored.get(name)]
    return "; ".join(f"`{name}` was {stored.get(name)!r} and is {current[name]!r}" for name in changed)

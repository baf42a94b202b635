"""`hf-tome env`: versions and devices, for a bug report."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

from .common import DebugOption, Format, FormatOption, example, pick_device

EXAMPLE = example(
    "hf-tome env --format md", "prints versions and devices as a Markdown table, to be pasted into an issue."
)


def env_command(format: FormatOption = Format.table, debug: DebugOption = False) -> None:
    """Print the versions of what is installed and the device that would be used."""
    from ..evaluation.environment import describe_environment

    environment = describe_environment(pick_device("auto"))
    sys.stdout.write(WRITERS[format](environment))


def _rows(environment: dict[str, Any]) -> list[tuple[str, str]]:
    packages = environment["packages"]
    rest = {name: value for name, value in environment.items() if name != "packages"}
    return [(name, "-" if value is None else str(value)) for name, value in (packages | rest).items()]


def _table(environment: dict[str, Any]) -> str:
    rows = _rows(environment)
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}  {value}\n" for name, value in rows)


def _csv(environment: dict[str, Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("name", "value"), *_rows(environment)])
    return text.getvalue()


def _markdown(environment: dict[str, Any]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in _rows(environment))


WRITERS = {
    Format.table: _table,
    Format.json: lambda environment: json.dumps(environment, indent=2) + "\n",
    Format.csv: _csv,
    Format.md: _markdown,
}

"""Rows on standard output in each format, for the commands whose results are no evaluation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..escaping import markdown_text
from ..evaluation.reporting.writers import csv_lines, markdown_table, plain_table
from .common import Format

Rows = Sequence[Mapping[str, Any]]


def write_rows(rows: Rows, form: Format, **more: Any) -> None:
    """Write rows of the same keys to standard output; as JSON one object, `rows` behind what else is given."""
    text = (
        json.dumps({**more, "rows": rows}, indent=2, allow_nan=False) + "\n"
        if form is Format.json
        else WRITERS[form](rows)
    )
    sys.stdout.write(text)


def file_row(path: Any, name: str | None = None) -> dict[str, Any]:
    """Return the columns that say which file was written, and how large it is."""
    return {"file": name or str(path), "bytes": path.stat().st_size}


def _table(rows: Rows) -> str:
    return plain_table(list(rows[0]), ([_text(value) for value in row.values()] for row in rows))


def _csv(rows: Rows) -> str:
    return csv_lines(list(rows[0]), (row.values() for row in rows))


def _markdown(rows: Rows) -> str:
    cells = (
        [markdown_text(value) if isinstance(value, str) else _text(value) for value in row.values()] for row in rows
    )
    return markdown_table(list(rows[0]), cells)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


WRITERS: dict[Format, Callable[[Rows], str]] = {Format.table: _table, Format.csv: _csv, Format.md: _markdown}

"""Lines of cells as a plain table, CSV or Markdown: how every command and every result writes them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from ...escaping import csv_cell


def csv_lines(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return rows of values as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return text.getvalue()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], num_left: int | None = None) -> str:
    """Return rows of cells, which are Markdown already, as a table; all but the first `num_left` columns to the right.

    `num_left` is `None` where all columns are texts.
    """
    num_left = len(header) if num_left is None else num_left
    ruler = ["---"] * num_left + ["---:"] * (len(header) - num_left)
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(ruler)}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "".join(f"{line}\n" for line in lines)


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of cells as columns of equal width, for a terminal."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "".join("  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in lines)

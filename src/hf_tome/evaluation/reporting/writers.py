"""Lines of cells as a plain table, CSV or Markdown: how every command and every result writes them."""

from __future__ import annotations

import csv
import io
import shutil
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


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None) -> str:
    """Return rows of cells as columns of equal width; as several tables, where one exceeds the terminal's width."""
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "".join("  ".join(line[i].ljust(widths[i]) for i in table).rstrip() + "\n" for line in lines)
        for table in fit_columns(widths, width or terminal_width(), gap=2)
    )


def terminal_width() -> int:
    """Return the columns of the terminal; 80 where the output is none."""
    return shutil.get_terminal_size((80, 24)).columns


def fit_columns(widths: Sequence[int], width: int, gap: int) -> list[list[int]]:
    """Return the columns of each of the fewest tables that fit a width; the first column stands in all of them.

    The tables are about equally wide. Where two columns alone do not fit, as with long paths, it stays one table.

    Args:
        widths: of the columns.
        width: of the terminal.
        gap: blanks between two columns.
    """
    if len(widths) > 1 and widths[0] + gap + max(widths[1:]) > width:
        return [list(range(len(widths)))]
    tables = _fill(widths, width, gap)
    return next(split for limit in range(width + 1) if len(split := _fill(widths, limit, gap)) == len(tables))


def _fill(widths: Sequence[int], width: int, gap: int) -> list[list[int]]:
    tables, used = [[0]], widths[0]
    for column, own in enumerate(widths[1:], 1):
        if used + gap + own > width and len(tables[-1]) > 1:
            tables.append([0])
            used = widths[0]
        tables[-1].append(column)
        used += gap + own
    return tables

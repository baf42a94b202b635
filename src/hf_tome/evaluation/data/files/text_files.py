"""Text files of a data set, read as editors and spreadsheets of any system write them.

A byte order mark is dropped and Unicode is composed (NFC), so that a text is equal to the same text from elsewhere.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

ENCODING = "utf-8-sig"
"""UTF-8, with the byte order mark that Excel writes or without."""

SEPARATOR = ";"
"""Between several values in one field of a CSV."""


def composed(text: str) -> str:
    """Return a text in Unicode's composed form (NFC); macOS writes names of files in the decomposed one."""
    return unicodedata.normalize("NFC", text)


def read_text(path: Path) -> str:
    """Return the content of a text file.

    Raises:
        UnicodeDecodeError: it is no UTF-8.
        OSError: it cannot be read.
    """
    return composed(path.read_bytes().decode(ENCODING))


def read_lines(path: Path) -> list[str]:
    """Return the lines that hold anything, stripped; raises as `read_text` does."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: it is no JSON or no UTF-8.
        OSError: it cannot be read.
    """
    return _parse(read_text(path))


def read_json_lines(path: Path) -> list[Any]:
    """Return what each line of a JSONL file holds; raises as `read_json` does."""
    # `splitlines` would also cut at line separators of Unicode, which JSON allows within a text.
    return [_parse(line) for line in read_text(path).split("\n") if line.strip()]


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str | None]]]:
    """Return the columns and the rows of a CSV; fields that a short row lacks are `None`.

    Raises:
        ValueError: it is no CSV or no UTF-8.
        OSError: it cannot be read.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        rows = [{name: value for name, value in row.items() if name is not None} for row in reader]
    except csv.Error as error:
        raise ValueError(f"it is no CSV: {error}") from error
    return list(reader.fieldnames or []), rows


def split_values(text: str | None) -> list[str]:
    """Return the values in one field of a CSV."""
    return [value.strip() for value in (text or "").split(SEPARATOR) if value.strip()]


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error

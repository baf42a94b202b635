"""Names and messages written into Markdown and CSV so that they stay text: no markup, links, HTML or formulas."""

from __future__ import annotations

import re
from typing import Any

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SPECIAL = re.compile(
    r"[\\`*~|$<>]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore inside a word is text already
    r"|&(?=#?\w+;)"
)
_PLAIN_BRACKETS = re.compile(r"([^\[\]!]*\[[^\[\]^!]*\](?![(\[:]))*[^\[\]]*")
"""Pairs that are neither nested nor part of links, pictures or footnotes, as in `r=[0,8,8]`."""
_BLOCK_START = re.compile(r"^([#+=:-](?=\s|$|[-=:])|#(?=#)|\d+(?=[.)](\s|$)))")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def markdown_text(value: Any) -> str:
    """Return the text as Markdown that shows it as it is, in one line, in a paragraph, a list or a table's cell."""
    line = " ".join(str(value).split())
    brackets = "" if _PLAIN_BRACKETS.fullmatch(line) else "[]"
    line = _SPECIAL.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), line)
    line = "".join(f"\\{letter}" if letter in brackets else letter for letter in line)
    return _BLOCK_START.sub(lambda match: f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}", line)


def markdown_code(value: Any) -> str:
    """Return the text as a code span of Markdown, whatever backticks it holds; for paragraphs and lists."""
    line = " ".join(str(value).split())
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line or not line else f"{fence}{line}{fence}"


def csv_cell(value: Any) -> Any:
    """Return a value for `csv.writer`; a text that spreadsheets would take for a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value

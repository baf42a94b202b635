"""Texts that ship with Python, for the small language model: docstrings of its library, and its language reference.

Every second chapter of the reference, by name, is held out; all else is for training.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 200
"""Characters from which on a docstring is taken."""
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "__pycache__"}


def held_out_texts(length: int) -> list[tuple[str, str]]:
    """Return pieces of so many characters of every second chapter of the reference, with a name, in a fixed order.

    The first piece of each chapter comes first, then the second ones; what is left of a chapter is left out.
    """
    pieces = [
        (at, f"{name}-{at // length}", text[at : at + length])
        for name, text in _chapters()[::2]
        for at in range(0, len(text) - length + 1, length)
    ]
    return [(name, text) for _, name, text in sorted(pieces, key=lambda piece: piece[0])]


def training_texts() -> list[str]:
    """Return the other chapters, and the docstrings of the standard library."""
    return [text for _, text in _chapters()[1::2]] + list(_docstrings())


def _chapters() -> list[tuple[str, str]]:
    from pydoc_data.topics import topics

    return sorted(topics.items())


def _docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if LEFT_OUT.intersection(path.relative_to(library).parts):
            continue
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text is not None and len(text) >= SHORTEST:
                    yield text

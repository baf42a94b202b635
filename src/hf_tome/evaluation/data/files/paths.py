"""Paths that a data set names: they stay inside its folder and are never addresses."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
"""The beginning of a URL; the letter of a Windows drive is none."""


class PathError(ValueError):
    """A data set names a path that is not opened; the message can stand alone as the reason."""


def joined(folder: Path, path: str) -> str:
    """Return a path that a file in `folder` names, as a whole one if it can be one in that folder."""
    return path if _ADDRESS.match(path) else str(folder / path)


def find_inside(path: str, roots: Sequence[Path]) -> str:
    """Return the whole path of a file that a data set names, found inside one of `roots`.

    Symbolic links are followed: they are the work of whoever set up the folder.

    Raises:
        PathError: it is an address, lies elsewhere, is no regular file, or is not there.
    """
    shown = next((os.path.relpath(path, root) for root in roots if path.startswith(f"{root}{os.sep}")), path)[:100]
    for root in roots:
        file = _below(root, path)
        if file is not None and (file.exists() or file.is_symlink()):
            if not file.is_file():
                raise PathError("its path is not that of a regular file")
            return str(file)
    if _ADDRESS.match(path):
        raise PathError(f"its path is an address ({shown}), which is not fetched")
    if all(_below(root, path) is None for root in roots):
        raise PathError(f"its path {shown} lies outside the folder of the data")
    raise PathError(f"there is no file {shown} in the folder of the data")


def _below(root: Path, path: str) -> Path | None:
    """Return the file of a path below a folder, `None` where it would lie outside of it."""
    if "\0" in path:
        return None
    base = os.path.abspath(root)
    # The path is normalised before anything is opened: behind a link, ".." would lead out.
    whole = os.path.normpath(os.path.join(base, path))
    if whole == base or os.path.commonpath([base, whole]) != base:
        whole = os.path.realpath(whole)  # the folder may have been given through a link
        base = os.path.realpath(base)
        if whole == base or os.path.commonpath([base, whole]) != base:
            return None
    return _in_any_form(Path(base), Path(whole).relative_to(base))


def _in_any_form(base: Path, path: Path) -> Path:
    """Return the path of a file whose name may be composed or decomposed Unicode on the disk."""
    if (base / path).exists() or str(path).isascii():
        return base / path
    for part in path.parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        base = next((base / form for form in forms if (base / form).exists()), base / part)
    return base

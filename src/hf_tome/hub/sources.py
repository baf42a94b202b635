"""Where a model or a data set comes from: a local folder or the Hub."""

from __future__ import annotations

from pathlib import Path


class SourceError(ValueError):
    """Something looks like a local folder and is not one."""


def is_folder(source: str, what: str) -> bool:
    """Tell whether `source` is a local folder; if not, it can be the id of a `what` on the Hub.

    Raises:
        SourceError: it can be neither.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return True
    if path.exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise SourceError(f"{source} is not a folder; give a local folder or the id of a {what} on the Hub.")
    return False


def public_name(source: str) -> str:
    """Return a Hub id as it is and a local folder by its name alone, so that results name no path of a machine."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() else source

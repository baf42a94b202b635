"""One run at a time in a folder of results."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""The file in the folder that is locked; it stays there, as deleting it would let two runs lock two files."""


class LockedError(ValueError):
    """Another run is writing to the folder."""


@contextmanager
def lock_folder(folder: Path | None, is_main: bool = True) -> Iterator[None]:
    """Keep other runs from writing to a folder, which is created; the same process may lock it several times.

    The lock is that of the operating system, so a killed run leaves none behind. Of the processes of one run the main
    one holds it.

    Raises:
        LockedError: another run has it.
        OSError: the folder cannot be created or written to.
    """
    if folder is None or not is_main:
        yield
        return
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    if path.is_symlink():
        raise OSError(f"{path} is a symbolic link, which is not written through; remove it or give another folder.")
    # One lock for each path in a process, so that a command can lock the folder around an evaluation that does, too.
    lock = FileLock(path, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise LockedError(
            f"Another run is writing to {folder}. Wait until it is done, which the same command then builds on, or "
            "give another --out."
        ) from None
    try:
        yield
    finally:
        lock.release()

"""Writing files: whole or not at all, and never through a symbolic link."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, so that it is the old one or the new one whatever happens meanwhile."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a new, empty file beside `path` to write to; it replaces `path` if the block ends without an error.

    A symbolic link at `path` is replaced too; what it points to is left alone.
    """
    path = Path(path)
    # The name has a fixed length, so that every name that the file system takes for `path` can be written.
    unfinished = path.with_name(f".{secrets.token_hex(6)}.part")
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # O_EXCL follows no link
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def open_to_append(path: Path) -> int:
    """Open a file to read and append, and return its descriptor.

    Raises:
        OSError: it is a symbolic link, or cannot be opened.
    """
    if path.is_symlink():  # where the system has no O_NOFOLLOW
        raise OSError(errno.ELOOP, "A symbolic link is not written through; remove it", str(path))
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines to a file; one that a kill cut short at its end stays a line by itself.

    Raises:
        OSError: it is a symbolic link, or cannot be written.
    """
    text = "".join(f"{line}\n" for line in lines)
    with os.fdopen(open_to_append(path), "a+b") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        is_cut_short = file.read(1) not in (b"", b"\n")
        file.write(("\n" * is_cut_short + text).encode())

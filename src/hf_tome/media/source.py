"""Open media from a file or from bytes alone: never from a URL, a pipe or a device."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .limits import MediaLimits

Source = str | Path | bytes
"""The path of a file, or its contents."""

_OBJECT = re.compile(r",? ?'?<_io\.\w+[^>]*>'?")
"""What Pillow and PyAV call a file in memory, as in `cannot identify image file <_io.BytesIO object at 0x7f>`."""


@contextmanager
def open_source(source: Source, limits: MediaLimits) -> Iterator[BinaryIO]:
    """Open a regular file or bytes for reading.

    Raises:
        MediaLimitError: there are more bytes than `limits` admits.
        OSError: there is no such file, or it is no regular file.
    """
    if isinstance(source, bytes):
        limits.check("file_bytes", len(source), f"it has {len(source)} bytes")
        yield io.BytesIO(source)
        return
    # Opening a named pipe would wait for a writer unless it does not block.
    descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        limits.check("file_bytes", status.st_size, f"it has {status.st_size} bytes")
        yield file


def source_name(source: Source, otherwise: str) -> str:
    """Return the name of a file without its folders, or `otherwise` for bytes."""
    return otherwise if isinstance(source, bytes) else Path(source).name


def error_reason(error: Exception) -> str:
    """Return the first line of an error, without the path that PyAV repeats, Python's objects and a full stop."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return _OBJECT.sub("", lines[0]).rstrip(".") if lines else type(error).__name__

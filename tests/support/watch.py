"""Tell what files and addresses are touched: by Python (an audit hook) and by C code (inotify, a listening socket)."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

IN_OPEN = 0x20
_watching: list[Watch] = []


class Watch:
    """A folder of which only the files that were given may be opened, and no network at all.

    Attributes:
        given: what may be opened at this time.
        touched: what was opened or asked for otherwise, as text.
    """

    def __init__(self, folder: Path, bait: Path):
        self.folder, self.given, self.touched = str(folder), set[str](), list[str]()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.port = self.socket.getsockname()[1]
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._libc.inotify_init1(os.O_NONBLOCK) if hasattr(self._libc, "inotify_init1") else -1
        if self._inotify >= 0:
            self._libc.inotify_add_watch(self._inotify, os.fsencode(bait), IN_OPEN)

    def audit(self, event: str, args: tuple) -> None:
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = os.path.abspath(os.fsdecode(args[0]))
            if path.startswith(self.folder + os.sep) and path not in self.given:
                self.touched.append(f"file {path}")
        elif event in ("socket.getaddrinfo", "socket.gethostbyname") or event == "socket.connect":
            self.touched.append(f"{event} {args[-1] if event == 'socket.connect' else args[0]}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            self.touched.append(f"{event} {args[0]}")

    def check(self) -> None:
        """Fail where something was touched that was not given."""
        with suppress(BlockingIOError):
            self.socket.accept()[0].close()
            self.touched.append("a connection")
        if self._inotify >= 0:
            with suppress(BlockingIOError):
                self.touched += ["the bait"] if os.read(self._inotify, 4096) else []
        assert not self.touched

    def close(self) -> None:
        self.socket.close()
        if self._inotify >= 0:
            os.close(self._inotify)


def _audit(event: str, args: tuple) -> None:
    for watch in _watching:
        watch.audit(event, args)


sys.addaudithook(_audit)  # it cannot be removed; without a `Watch` it does nothing


@contextmanager
def watching(folder: Path, bait: Path) -> Iterator[Watch]:
    """Watch until the end of the block."""
    watch = Watch(folder, bait)
    try:
        yield watch
    finally:
        watch.close()


@contextmanager
def only(watch: Watch, *files: Path) -> Iterator[None]:
    """Let only these files be opened within the block, and check it at its end."""
    watch.given = {str(file) for file in files}
    _watching.append(watch)
    try:
        yield
    finally:
        _watching.remove(watch)
    watch.check()

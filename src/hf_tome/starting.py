"""Ctrl-C while `hf-tome` starts: torch and transformers take seconds to import, and Python would show where it was.

Imported before them; does nothing in a process that only uses the library.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

INTERRUPTED = 130
"""The exit status of a command that was interrupted, as in a shell."""


def is_command(arguments: Sequence[str]) -> bool:
    """Tell from `sys.orig_argv` whether this process is `hf-tome ...` or `python -m hf_tome ...`."""
    names = [Path(argument).stem for argument in arguments]
    return "hf-tome" in names[:2] or ("-m", "hf_tome") in pairwise(names)


def leave_quietly() -> None:
    """Until `catch_interrupts`, make Ctrl-C end the process with one line; where it is ignored, it stays so."""
    is_main = threading.current_thread() is threading.main_thread()  # no other can set what a signal does
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def catch_interrupts() -> None:
    """Make Ctrl-C raise `KeyboardInterrupt` again, which lets a run end in order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: object) -> None:
    # Not by an exception: modules that are being imported catch those, and go on half imported.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"interrupted\n")
    os._exit(INTERRUPTED)


if is_command(sys.orig_argv):
    leave_quietly()

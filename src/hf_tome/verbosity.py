"""How much hf_tome logs, as `transformers.logging` has it for transformers; imports nothing heavy."""

from __future__ import annotations

import logging
import sys

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}

_LOGGER = logging.getLogger(__package__)


class _StandardError(logging.Handler):
    """Writes to standard error as long as the program itself has set up no logging."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr)


_HANDLER = _StandardError()
_HANDLER.setFormatter(logging.Formatter("%(levelname)s: %(name)s: %(message)s"))


def get_verbosity() -> int:
    """Return the level of hf_tome's logger, as in `logging`."""
    return _LOGGER.getEffectiveLevel()


def set_verbosity(level: int | str) -> None:
    """Log messages of this level and above: a number as in `logging`, or one of the names in `LEVELS`.

    They go to the handlers of the program, or to standard error where it has none.

    Raises:
        ValueError: no such level.
    """
    if isinstance(level, str) and level.lower() in LEVELS:
        level = LEVELS[level.lower()]
    if isinstance(level, bool) or not isinstance(level, int):
        raise ValueError(f"The level is {level!r}; it takes a number or one of {', '.join(map(repr, LEVELS))}.")
    _LOGGER.setLevel(level)
    _LOGGER.addHandler(_HANDLER)  # adds it once


def set_verbosity_debug() -> None:
    """Log everything."""
    set_verbosity(logging.DEBUG)


def set_verbosity_info() -> None:
    """Log what is done, and warnings."""
    set_verbosity(logging.INFO)


def set_verbosity_warning() -> None:
    """Log warnings and errors, as by default."""
    set_verbosity(logging.WARNING)


def set_verbosity_error() -> None:
    """Log errors alone."""
    set_verbosity(logging.ERROR)

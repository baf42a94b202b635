"""Check what the fields of a config are set to, and bring them to Python's own types."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any


def normalise_r(r: Any) -> int | tuple[int, float] | list[int]:
    """Return the `r` of a config as an integer, a pair or a list.

    Raises:
        ValueError: it is none; the message names the field.
    """
    is_pair, is_list = isinstance(r, tuple) and len(r) == 2, isinstance(r, (list, tuple, range))
    numbers = _indices(r[:1] if is_pair else r if is_list else [r])
    if not numbers or (is_pair and not _is_number(r[1], -1.0, 1.0)):
        raise ValueError(
            f"`r` is {r!r}; it takes an integer of at least 0, a pair (r, inflection) with an inflection from -1 to "
            "1, or a list of one integer per block."
        )
    if is_pair:
        return numbers[0], float(r[1])
    return numbers if is_list else numbers[0]


def normalise_layers(layers: Any) -> tuple[int, ...] | None:
    """Return block numbers, each once and ascending.

    Raises:
        ValueError: it is none; the message names the field.
    """
    if layers is None:
        return None
    is_listed = isinstance(layers, Iterable) and not isinstance(layers, (str, bytes))
    given = list(layers) if is_listed else layers
    numbers = _indices(given) if is_listed else None
    if numbers is None:
        raise ValueError(f"`layers` is {given!r}; it takes block numbers, as in range(8) or [2, 5, 8], or None.")
    return tuple(sorted(set(numbers)))


def index(name: str, value: Any, minimum: int = 0) -> int:
    """Return an integer of at least `minimum`.

    Raises:
        ValueError: it is none; the message names the field.
    """
    numbers = _indices([value], minimum)
    if numbers is None:
        raise ValueError(f"`{name}` is {value!r}; it takes an integer of at least {minimum}.")
    return numbers[0]


def _indices(values: Iterable[Any], minimum: int = 0) -> list[int] | None:
    """Return integers of any library as Python's, or `None` unless all are, and at least `minimum`."""
    try:
        numbers = [operator.index(value) for value in values]
    except TypeError:
        return None
    sound = all(number >= minimum for number in numbers) and not any(isinstance(value, bool) for value in values)
    return numbers if sound else None


def check_choice(name: str, value: Any, choices: tuple[str, ...], also: str = "") -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: it is none; the message names the field.
    """
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; it takes {also}one of {', '.join(map(repr, choices))}.")


def number(name: str, value: Any, low: float, high: float, also: str = "") -> float:
    """Return a number from `low` to `high`.

    Raises:
        ValueError: it is none; the message names the field.
    """
    if not _is_number(value, low, high):
        raise ValueError(f"`{name}` is {value!r}; it takes {also}a number from {low:g} to {high:g}.")
    return float(value)


def _is_number(value: Any, low: float, high: float) -> bool:
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and bool(low <= value <= high)

"""Check what the fields of a config are set to, and bring them to Python's own types."""

from __future__ import annotations

import operator
import re
import reprlib
from collections.abc import Iterable
from itertools import islice
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .merge_config import MergeConfig

MAX_TOKENS = 2**31 - 1
"""The largest number of tokens that a field takes; more do not fit a tensor's index on all devices."""
MAX_LAYERS = 10_000
"""The largest number of blocks, so that a typing error in a range does not fill the memory."""
_MODULE_NAME = re.compile(r"\w+(\.\w+)*")


class PerBlock(tuple[int, ...]):
    """One number of tokens a block: a list that cannot be changed, unequal to a pair (r, inflection)."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (PerBlock, list)) and list(self) == list(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((PerBlock, *self))

    def __repr__(self) -> str:
        return repr(list(self))


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 12
        self.maxstring = self.maxlong = self.maxother = 100
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python refuses to write out more than 4,300 digits
            return f"an integer of {x.bit_length()} bits"


def shown(value: Any) -> str:
    """Return a value as an error message shows it: its `repr`, cut where it is long or nested."""
    return _Short().repr(value)


def normalise_r(r: Any) -> int | tuple[int, float] | PerBlock:
    """Return the `r` of a config as an integer, a pair or one number a block.

    Raises:
        ValueError: it is none; the message names the field.
    """
    is_list = isinstance(r, (list, tuple, range))
    is_pair = isinstance(r, tuple) and not isinstance(r, PerBlock) and len(r) == 2
    numbers = None
    if not is_list or len(r) <= MAX_LAYERS:
        numbers = _indices(r[:1] if is_pair else r if is_list else [r], maximum=MAX_TOKENS)
    if not numbers or (is_pair and not _is_number(r[1], -1.0, 1.0)):
        raise ValueError(
            f"`r` is {shown(r)}; it takes an integer of at least 0, a pair (r, inflection) with an inflection "
            f"from -1 to 1, or a list of one integer per block; at most {MAX_TOKENS}, in {MAX_LAYERS} blocks."
        )
    if is_pair:
        return numbers[0], float(r[1])
    return PerBlock(numbers) if is_list else numbers[0]


def normalise_layers(layers: Any) -> tuple[int, ...] | None:
    """Return block numbers, each once and ascending.

    Raises:
        ValueError: it is none; the message names the field.
    """
    if layers is None:
        return None
    is_listed = isinstance(layers, Iterable) and not isinstance(layers, (str, bytes))
    given = list(islice(layers, MAX_LAYERS + 1)) if is_listed else layers
    numbers = _indices(given, maximum=MAX_LAYERS - 1) if is_listed and len(given) <= MAX_LAYERS else None
    if numbers is None:
        raise ValueError(
            f"`layers` is {shown(given)}; it takes block numbers from 0 to {MAX_LAYERS - 1}, as in [2, 5, 8], "
            "in text also 0-7, or None."
        )
    return tuple(sorted(set(numbers)))


def normalise_pair(name: str, value: Any, minimum: int = 0) -> tuple[int, int]:
    """Return a pair of integers of at least `minimum`.

    Raises:
        ValueError: it is none; the message names the field.
    """
    numbers = _indices(value, minimum, MAX_TOKENS) if isinstance(value, (list, tuple)) and len(value) == 2 else None
    if numbers is None:
        raise ValueError(f"`{name}` is {shown(value)}; it takes a pair of integers of at least {minimum}.")
    return numbers[0], numbers[1]


def normalise_span(name: str, value: Any) -> tuple[float, float] | None:
    """Return a span of shares, (begin, end), or `None` for all.

    Raises:
        ValueError: it is none; the message names the field.
    """
    if value is None:
        return None
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_number(end, 0.0, 1.0) for end in value)
    if not is_pair or not value[0] < value[1]:
        raise ValueError(
            f"`{name}` is {shown(value)}; it takes None, or a pair of shares (begin, end) with 0 <= begin < end <= 1, "
            "as in (0.5, 1.0) for the second half."
        )
    return float(value[0]), float(value[1])


def normalise_names(name: str, value: Any) -> tuple[str, ...] | None:
    """Return dotted names of modules, each once, or `None` for all.

    Raises:
        ValueError: it is none; the message names the field.
    """
    if value is None:
        return None
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else []
    if not names or not all(isinstance(part, str) and _MODULE_NAME.fullmatch(part) for part in names):
        raise ValueError(f"`{name}` is {shown(value)}; it takes None, or names of modules, as in ['vision_model'].")
    return tuple(dict.fromkeys(names))


def index(name: str, value: Any, minimum: int = 0, also: str = "") -> int:
    """Return an integer of at least `minimum`.

    Raises:
        ValueError: it is none; the message names the field.
    """
    numbers = _indices([value], minimum)
    if numbers is None:
        raise ValueError(f"`{name}` is {shown(value)}; it takes {also}an integer of at least {minimum}.")
    return numbers[0]


def _indices(values: Iterable[Any], minimum: int = 0, maximum: int | None = None) -> list[int] | None:
    """Return integers of any library as Python's, or `None` unless all are, and within the bounds."""
    try:
        numbers = [operator.index(value) for value in values]
    except TypeError:
        return None
    is_sound = all(number >= minimum and (maximum is None or number <= maximum) for number in numbers)
    return numbers if is_sound and not any(isinstance(value, bool) for value in values) else None


def check_choice(name: str, value: Any, choices: Iterable[str], also: str = "") -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: it is none; the message names the field.
    """
    if value not in tuple(choices):
        raise ValueError(f"`{name}` is {shown(value)}; it takes {also}one of {', '.join(map(repr, choices))}.")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither `True` nor `False`.

    Raises:
        ValueError: it is neither; the message names the field.
    """
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` is {shown(value)}; it takes True or False.")


def number(
    name: str,
    value: Any,
    low: float,
    high: float,
    also: str = "",
    *,
    low_excluded: bool = False,
    high_excluded: bool = False,
) -> float:
    """Return a number from `low` to `high`.

    Raises:
        ValueError: it is none; the message names the field.
    """
    is_sound = _is_number(value, low, high)
    if not is_sound or (low_excluded and value == low) or (high_excluded and value == high):
        bounds = f"{'above' if low_excluded else 'from'} {low:g} {'below' if high_excluded else 'to'} {high:g}"
        raise ValueError(f"`{name}` is {shown(value)}; it takes {also}a number {bounds}.")
    return float(value)


def _is_number(value: Any, low: float, high: float) -> bool:
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and bool(low <= value <= high)


def normalised(config: MergeConfig) -> dict[str, Any]:
    """Return the fields that are kept in another form than they may be given in."""
    values: dict[str, Any] = {
        "r": normalise_r(config.r),
        "layers": normalise_layers(config.layers),
        "threshold": number("threshold", config.threshold, -1.0, 1.0),
        "seed": index("seed", config.seed),
        "protect_attended": number("protect_attended", config.protect_attended, 0.0, 10.0),
        "kmeans_iterations": index("kmeans_iterations", config.kmeans_iterations, minimum=1),
        "every": index("every", config.every, minimum=1),
        "min_tokens": index("min_tokens", config.min_tokens),
        "stride": normalise_pair("stride", config.stride, minimum=1),
        "steps": normalise_span("steps", config.steps),
        "towers": normalise_names("towers", config.towers),
        "protect": normalise_pair("protect", config.protect),
    }
    if config.keep_ratio is not None:
        least = 0.0 if config.where == "cache" else 0.5
        values["keep_ratio"] = number("keep_ratio", config.keep_ratio, least, 1.0, "None, or ", low_excluded=not least)
    if config.ratio is not None:
        values["ratio"] = number("ratio", config.ratio, 0.0, 1.0, "None, or ", high_excluded=True)
    if config.tile is not None:
        values["tile"] = index("tile", config.tile, minimum=2, also="None, or ")
    return values

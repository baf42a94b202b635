"""What a record must hold to be trusted: a run that resumes checks each before it uses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Whether it is a string."""
    return isinstance(value, str)


def is_index(value: Any) -> bool:
    """Whether it is an integer of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def is_amount(value: Any) -> bool:
    """Whether it is a finite number of at least 0."""
    return is_number(value) and value >= 0


def is_duration(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return is_number(value) and value > 0


def optional(check: Check) -> Check:
    """Return the check that lets `None` pass too."""
    return lambda value: value is None or check(value)


def list_of(check: Check) -> Check:
    """Return the check of a list whose items all pass."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def is_mapping(value: Any) -> bool:
    """Whether it is a JSON object."""
    return isinstance(value, dict)


def is_load(value: Any) -> bool:
    """Whether it is the load of a machine, `None` where it is unknown, and its cores."""
    return isinstance(value, list) and len(value) == 2 and optional(is_amount)(value[0]) and is_duration(value[1])


def is_seconds(value: Any) -> bool:
    """Whether it is the seconds of variants by name."""
    return is_mapping(value) and all(map(is_duration, value.values()))


KINDS: dict[str, dict[str, Check]] = {
    "environment": {"session": is_text, "environment": is_mapping, "load": is_load},
    "peak_memory_mib": {"session": is_text, "variant": is_text, "peak_memory_mib": is_amount},
    "round": {"session": is_text, "round": list_of(is_index), "seconds": is_seconds},
    "skipped": {"session": is_text, "sample": is_index, "name": is_text, "skipped": is_text},
    "variant": {
        "session": is_text,
        "variant": is_text,
        "sample": is_index,
        "name": is_text,
        "tokens": is_amount,
        "gflops": optional(is_amount),
    },
}
"""By the field that tells the kind of a record, the fields that it needs; the first that fits is the kind."""


def record_kind(record: Mapping[str, Any]) -> str:
    """Return the kind of a record, a key of `KINDS`.

    Raises:
        ValueError: it is of no kind, or lacks a field, or holds something else there.
    """
    kind = next((kind for kind in KINDS if kind in record), None)
    if kind is None:
        raise ValueError("it is of no known kind")
    check_fields(record, KINDS[kind])
    return kind


def check_fields(record: Mapping[str, Any], fields: Mapping[str, Check]) -> None:
    """Check fields of a record.

    Raises:
        ValueError: one is missing, or holds something else.
    """
    for name, check in fields.items():
        if name not in record:
            raise ValueError(f"it has no {name!r}")
        if not check(record[name]):
            raise ValueError(f"its {name!r} is {record[name]!r:.40}")

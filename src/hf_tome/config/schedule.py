"""The tokens that each block merges, from the forms that `MergeConfig.r` takes."""

from __future__ import annotations

from collections.abc import Sequence

from .validation import PerBlock


def numbers_per_block(r: int | tuple[int, float] | Sequence[int], num_layers: int) -> list[int]:
    """Return one number for each of `num_layers` blocks, from a constant, a list or a pair (r, inflection).

    Raises:
        ValueError: the list is longer than the model.
    """
    if isinstance(r, int):
        return [r] * num_layers
    if isinstance(r, PerBlock):
        if len(r) > num_layers:
            raise ValueError(f"`r` lists {len(r)} blocks, but the model has {num_layers}; shorten the list.")
        return list(r) + [0] * (num_layers - len(r))
    return _inflected(r[0], r[1], num_layers)


def _inflected(r: int, inflection: float, num_layers: int) -> list[int]:
    # A line from `first` to `2r - first`, so that every inflection removes r * num_layers tokens (up to truncation).
    first = int(r * (1 - inflection))
    step = (2 * r - 2 * first) / (num_layers - 1) if num_layers > 1 else 0.0
    return [int(first + step * layer) for layer in range(num_layers)]

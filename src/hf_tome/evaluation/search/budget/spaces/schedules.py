"""One family of schedules: little merges in the first and the last blocks, most around a peak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

FLOOR = 0.15
"""The least share of the peak that a block merges, to begin with."""
STEPS = 40
"""Halvings by which a schedule is scaled to a budget."""


def peaked(num_layers: int, centre: float, width: float, floor: float = FLOOR) -> list[float]:
    """Return the weights of a schedule that falls off to both sides of a peak.

    Args:
        num_layers: blocks.
        centre: where the peak is, from 0 (the first block) to 1 (the last).
        width: how far from it the schedule has fallen to 0, as a share of the blocks.
        floor: what is left everywhere, of a peak of 1.
    """
    peak, reach = centre * (num_layers - 1), max(width * num_layers, 1)
    return [max(floor, 1 - abs(layer - peak) / reach) for layer in range(num_layers)]


def constant(num_layers: int) -> list[float]:
    """Return the weights of ToMe's constant schedule."""
    return [1.0] * num_layers


def decreasing(num_layers: int) -> list[float]:
    """Return the weights of ToMe's schedule that falls to 0 (ToMe, equation 3)."""
    return [float(num_layers - 1 - layer) for layer in range(num_layers)]


def scaled(weights: Sequence[float], total: float) -> list[int]:
    """Return integers in proportion to the weights that sum to `total`, rounded: each rounds what is due by then."""
    cumulative = list(accumulate(weights))
    due = [round(total * (part / cumulative[-1])) for part in cumulative]  # exactly `total` at the end
    return [after - before for before, after in pairwise([0, *due])]


def fit(weights: Sequence[float], cost: Callable[[list[int]], float], budget: float, most: int) -> list[int] | None:
    """Return the mildest schedule with these weights whose cost is within the budget; `None` where none is.

    Args:
        weights: of the blocks.
        cost: of a schedule; it falls as more tokens merge.
        budget: what it may cost.
        most: the tokens that may merge in all blocks together, at most.
    """
    low, high = 0.0, float(2 * most)  # more than there are, since blocks merge half of their tokens at most
    if not any(weights) or cost(scaled(weights, high)) > budget:
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(scaled(weights, middle)) <= budget else (middle, high)
        if round(low * 4) == round(high * 4):
            break
    return scaled(weights, high)

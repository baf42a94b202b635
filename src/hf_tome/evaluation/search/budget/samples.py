"""Samples to choose by and others to confirm on: they never overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...data.left_out import LeftOut
from ...data.samples import Sample, SampleInfo, Skipped
from ...job import Data

FEWEST = 8
"""Samples to choose by, and to confirm on, at the least."""
COMMON = 96
"""Samples to choose by where there are enough: with fewer, single ones rule the choice."""


@dataclass
class Subset:
    """Some samples of a split, counted from 0; name, split and what is left out are those of the data."""

    data: Data
    positions: Sequence[int]

    def __post_init__(self) -> None:
        self.name: str = self.data.name
        self.split: str = self.data.split
        self.left_out: LeftOut = self.data.left_out

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[Sample]:
        return (entry for entry in self.read() if isinstance(entry, Sample))

    def listed(self) -> Sequence[SampleInfo] | None:
        """Return what is known of every sample without reading its content."""
        listed = self.data.listed()
        return None if listed is None else [listed[position] for position in self.positions]

    def read(self, wanted: Callable[[int], bool] = lambda position: True) -> Iterator[Sample | Skipped]:
        """Read those at the wanted positions of the subset."""
        places = {position: place for place, position in enumerate(self.positions) if wanted(place)}
        for entry in self.data.read(lambda position: position in places):
            yield replace(entry, position=places[entry.position])


def split_samples(data: Data, choose: int, confirm: int | None, seed: int) -> tuple[Subset, Subset]:
    """Return the samples to choose by, and those to confirm on, drawn at random.

    Raises:
        ValueError: there are too few samples, or their number is not known.
    """
    count = len(data)
    if count < 2 * FEWEST:
        reason = f"{data.name} has {count} samples" if count else f"how many samples {data.name} has is not known"
        raise ValueError(
            f"{reason}; tuning takes {2 * FEWEST} at the least, half to choose by and half to confirm on, and "
            f"{COMMON} and 500 to tell much. Give more samples, and no stream."
        )
    if choose < FEWEST:
        raise ValueError(f"`choose` is {choose}; it takes at least {FEWEST} samples.")
    order = np.random.default_rng(seed).permutation(count)
    first = min(choose, count // 2)
    rest = order[first:] if confirm is None else order[first : first + confirm]
    return Subset(data, sorted(order[:first].tolist())), Subset(data, sorted(rest.tolist()))

"""What a layer's cache does with its entries: the config's fields, resolved for one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...merging.method import Fields, Method

TAIL_LIMIT = 256
"""Entries behind the merged ones, besides the protected last ones, that are stored as they are."""


@dataclass(frozen=True)
class Rule:
    """How the entries of a layer merge.

    Attributes:
        method, fields, causal, destinations: how entries are matched.
        keep_ratio: the share of all entries that stay; `None` where a threshold decides.
        protect: the first and last entries that never merge.
        uses_sizes: whether log(size) is added to the attention logits.
        fits_sizes: whether sizes, and weights of averages, are fitted to queries.
        seed, layer, num_layers: as methods take them.
    """

    method: Method
    fields: Fields
    keep_ratio: float | None
    protect: tuple[int, int]
    causal: bool
    destinations: str
    uses_sizes: bool
    fits_sizes: bool
    seed: int
    layer: int
    num_layers: int

    @property
    def merges(self) -> bool:
        """Whether anything may merge."""
        return self.keep_ratio != 1

    @property
    def reads_queries(self) -> bool:
        """Whether queries are needed to merge."""
        return self.merges and (self.fits_sizes or self.method.metric == "received")

    def target(self, num_seen: int) -> int:
        """Return how many of so many entries are to stay, the protected ones included; 0: the threshold decides."""
        # A product such as 0.29 * 100 may come out a little above the integer that it stands for.
        return 0 if self.keep_ratio is None else math.ceil(self.keep_ratio * num_seen - 1e-9)

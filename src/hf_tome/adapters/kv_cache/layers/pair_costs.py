"""Match the entries of a cache by how much merging them would change what attention returns."""

from __future__ import annotations

import torch
from torch import Tensor

from ....merging.base import HardMerge
from ....merging.indexing import take
from ....merging.partition import sources_beside
from ....merging.similarity import BLOCK, row_maximum, sound


def match_by_change(
    keys: Tensor,
    values: Tensor,
    mass: Tensor,
    num_left: int,
    destinations: Tensor,
    *,
    causal: bool = False,
    combine: str = "weighted_mean",
) -> HardMerge:
    """Match each source to the destination with which it merges at the lowest cost, and merge the cheapest pairs.

    Two entries that merge share one logit: what they receive is then shared in a fixed ratio. That costs nothing where
    their keys or their values are alike, and little where one of them receives little: the cost is the product of the
    distances of the keys and of the values, and of the harmonic mean of what both receive.

    Args:
        keys: (B, N, D) before RoPE, whose distance is 1 - cosine.
        values: (B, N, D), whose distance is squared.
        mass: (B, N), the attention that each receives, above 0.
        num_left: entries that are left, at least as many as there are destinations.
        destinations: (B, T), ascending; all others are sources.
        causal: entries merge into later ones alone.
        combine: see `HardMerge`.
    """
    num_entries = keys.shape[1]
    sources = sources_beside(destinations, num_entries)
    best, partner = _cheapest(keys, values, mass, sources, destinations, causal)
    order = best.argsort(dim=1, descending=True, stable=True)
    count = num_entries - num_left
    merged, unmerged = order[:, :count], order[:, count:].sort(dim=1).values
    kept = torch.cat([sources.gather(1, unmerged), destinations], dim=1)
    into = partner.gather(1, merged) + unmerged.shape[1]
    return HardMerge(kept, sources.gather(1, merged), into, num_entries, combine)


def _cheapest(
    keys: Tensor, values: Tensor, mass: Tensor, sources: Tensor, destinations: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """Return the lowest cost of each source, negated, and the index of the destination that has it, each (B, S)."""
    unit, key_bias = sound(keys, unit=True)
    values, value_bias = sound(values)
    bias = key_bias + value_bias  # of broken entries
    one, length = torch.ones_like(unit[..., :1]), values.square().sum(dim=-1, keepdim=True)
    inverse = 1 / mass[..., None]
    # (B, N, D + 1) and (B, N, D + 2): one product each gives -distance of keys, and distance of values
    key_a, key_b = torch.cat([unit, one], dim=-1), torch.cat([unit, -one], dim=-1)
    value_a, value_b = torch.cat([values, length, one], dim=-1), torch.cat([-2 * values, one, length], dim=-1)
    key_b, value_b = (take(x, destinations).transpose(1, 2) for x in (key_b, value_b))
    inverse_b, bias_b = take(inverse, destinations).transpose(1, 2), bias.gather(1, destinations)[:, None]
    num_rows = max(BLOCK // (keys.shape[0] * destinations.shape[1]), 1)
    best, partner = [], []
    for block in sources.split(num_rows, dim=1):
        scores = torch.bmm(take(key_a, block), key_b)  # (B, rows, T)
        scores = scores.mul_(torch.bmm(take(value_a, block), value_b)).div_(take(inverse, block) + inverse_b)
        scores = scores.add_(bias_b)
        if causal:
            scores = scores.masked_fill_(block[:, :, None] > destinations[:, None], -torch.inf)
        highest, index = row_maximum(scores)
        best.append(highest + bias.gather(1, block))
        partner.append(index)
    return torch.cat(best, dim=1), torch.cat(partner, dim=1)

"""Which pairs of tokens may be above MaMe's threshold, by one product of matrices in low precision."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..similarity import full_precision

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Booleans = NDArray[np.bool_]

BFLOAT16_MARGIN = 0.012
"""By how much a cosine in bfloat16 may be wrong: 2^-8 by rounding either token, and 2^-8 by rounding the product."""
FEWEST_PRODUCTS = 1 << 22
"""Fewer products are done in single precision: they take less than making the tokens' rounded copy does."""


def candidate_pairs(
    tokens: Tensor, lengths: Singles | Floats, threshold: float, num_special: int, num_merged: int | None
) -> Booleans:
    """Return which pairs of an odd destination and an even source may have a cosine above `threshold`, (B, T, S).

    With `num_merged` they are pairs of those sources alone that may be among so many with the most similar
    destinations, and what may be the most similar one is among them.

    Args:
        tokens (`Tensor`): (B, N, D), in float32 or float64.
        lengths: (B, N), of the tokens; infinite where one is like no other.
    """
    batch_size, num_tokens, channels = tokens.shape
    margin = channels * 2.0**-22  # of a sum of so many rounded products, and of two lengths
    sources, destinations = tokens[:, num_special::2], tokens[:, num_special + 1 :: 2]
    if batch_size * num_tokens**2 * channels >= 4 * FEWEST_PRODUCTS and _has_bfloat16_products():
        sources, destinations, margin = sources.bfloat16(), destinations.bfloat16(), BFLOAT16_MARGIN
    with full_precision(tokens.device):
        products = torch.bmm(destinations, sources.transpose(1, 2)).float().numpy()  # (B, T, S)
    of_sources, of_destinations = lengths[:, None, num_special::2], lengths[:, num_special + 1 :: 2, None]
    level = threshold - margin
    if num_merged is None:
        return products > (level * of_sources) * of_destinations
    cosines = products / (of_sources * of_destinations)
    bound = _bound_of_best(cosines.max(axis=1), level, margin, num_merged)
    return cosines > bound[:, None]


def _bound_of_best(best: Singles, level: float, margin: float, num_merged: int) -> Singles:
    """Return the cosine above which a source's pairs are looked at, (B, S), from the `best` of its pairs (B, S)."""
    if num_merged == 0:
        return np.full_like(best, np.inf)
    best = best - np.float32(2 * margin)  # of a difference of two
    bound = np.minimum(best, np.float32(level))
    if num_merged < best.shape[1]:
        least = np.partition(best, -num_merged, axis=1)[:, -num_merged, None]  # (B, 1)
        bound[best + np.float32(2 * margin) < least] = np.inf
    return bound


@functools.cache
def _has_bfloat16_products() -> bool:
    """Return whether this CPU has instructions that multiply matrices in bfloat16, several times as fast."""
    has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public name before torch 2.10
    return torch.backends.mkldnn.is_available() and has_instructions is not None and has_instructions()

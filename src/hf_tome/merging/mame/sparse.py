"""MaMe's matching without a graph: the few pairs of tokens above the threshold, instead of matrices of zeros.

In real images a source has one to four destinations above the threshold, of a hundred. A product in low precision
finds the pairs that may be above it; equations 2 to 8 are computed in double precision for those pairs alone. So the
choices are those of the dense form, ties included, and do not depend on what else is in the batch.

What has an entry per pair or per token, and no channels, is in NumPy: its calls cost a quarter of PyTorch's, and a
single image has so few pairs that little else counts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..similarity import TOO_LONG, full_precision

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Booleans = NDArray[np.bool_]

TIE = 1e-6
"""A weight that exceeds its column's threshold by no more than this is a tie, not a connection.

By equations 5 to 8 a source with one destination above tau, or with equal weights, has W = zeta, so its column is zero
and it is preserved. In floating point the sign of W - zeta is rounding noise there, and must not decide. (Without
pruning the threshold is 0: a source that is just as similar as tau has weights of rounding noise alone.)
"""
BFLOAT16_MARGIN = 0.01
"""By how much a cosine in bfloat16 may be wrong: 2^-8 by rounding the tokens, 2^-9 by rounding the cosine, and 2^-9 by
rounding the threshold that it is compared with, which are 0.0078."""
LOWEST_THRESHOLD = 0.1
"""Below this threshold most pairs are connected."""
MOST_PAIRS = 1 / 16
"""The share of all pairs above which the dense form is faster: rows are gathered slower than matrices multiplied.

Two pairs a source are few at any number of destinations.
"""
FEWEST_PRODUCTS = 1 << 15
"""Smaller products of matrices are done in single precision."""
CACHED = 1 << 18
"""Numbers in double precision that are worked on at a time, so that they stay in the processor's cache."""
_NONE: Floats = np.empty(0)


@dataclass(frozen=True)
class Connections:
    """The weights W^F of equation 8 that are not zero, ordered by image and source.

    Attributes:
        image, source, destination: (E,), the image, and the numbers among its sources and destinations.
        weight, share: (E,), W^F, and the same without epsilon, which sums to 1 in each column.
        gone: (B, S), the sources that are fused.
        num_special, num_destinations: how many leading tokens are set aside, and T.
    """

    image: Integers
    source: Integers
    destination: Integers
    weight: Floats
    share: Floats
    gone: Booleans
    num_special: int
    num_destinations: int

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.num_special + self.gone.shape[1] + self.num_destinations

    def dense(self) -> Tensor:
        """Return W^F, (B, T, S)."""
        batch_size, num_sources = self.gone.shape
        weights = np.zeros((batch_size, self.num_destinations, num_sources))
        weights[self.image, self.destination, self.source] = self.weight
        return torch.from_numpy(weights)


def find_connections(
    metric: Tensor,
    threshold: float,
    num_special: int,
    eps: float,
    padding: Tensor | None,
    num_merged: int | None = None,
) -> Connections | None:
    """Return the connections of tokens (B, N, D), even sources to odd destinations; `padding` is (B, N) bool.

    With `num_merged` so many sources of each image are connected, those with the most similar destinations.

    `None` where the dense form is to be used: a token is broken, or too many pairs are above the threshold.
    """
    metric = metric.to(torch.promote_types(metric.dtype, torch.float32)).contiguous()
    batch_size, num_tokens, channels = metric.shape
    num_destinations = (num_tokens - num_special) // 2
    num_sources = num_tokens - num_special - num_destinations
    sizes = num_special, num_destinations
    if num_destinations == 0 or batch_size == 0:
        return None
    lengths = torch.linalg.vector_norm(metric, dim=-1).clamp_(min=1e-12).numpy()  # (B, N)
    if not lengths.max() < TOO_LONG:
        return None
    pairs = _screen(metric, lengths, threshold, num_special, padding, num_merged)
    num_rows = batch_size * num_sources
    if pairs.shape[0] > max(MOST_PAIRS * num_rows * num_destinations, 2 * num_rows, 64):
        return None
    row, destination = np.divmod(pairs, num_destinations)
    if num_merged is None:
        # A source with one destination has W = zeta, and is preserved.
        several = np.bincount(row, minlength=num_rows)[row] > 1
        row, destination = row[several], destination[several]
    if row.shape[0] == 0:
        return Connections(row, row, row, _NONE, _NONE, np.zeros((batch_size, num_sources), bool), *sizes)
    image, source = np.divmod(row, num_sources)
    first = image * num_tokens + num_special  # of the image's sources, among all tokens (B * N,)
    cosine = _cosine(metric.view(-1, channels), first + 2 * source, first + 2 * destination + 1)
    weight, share, gone = _fusion_weights(cosine, row, num_rows, threshold, eps)
    if num_merged is not None:
        weight, share, gone = _best_matched(cosine, row, (weight, share, gone), num_merged, batch_size)
    kept = np.flatnonzero(weight)
    pair = image[kept], source[kept], destination[kept], weight[kept], share[kept]
    return Connections(*pair, gone.reshape(batch_size, num_sources), *sizes)


def _screen(
    metric: Tensor,
    lengths: Singles,
    threshold: float,
    num_special: int,
    padding: Tensor | None,
    num_merged: int | None,
) -> Integers:
    """Return the pairs whose cosine may be above `threshold`, as ascending numbers of all (B * S * T,).

    `lengths` (B, N) are those of the tokens. With `num_merged` they are pairs of those sources alone that may be among
    so many with the most similar destinations, and what may be the most similar one is among them.
    """
    sources, destinations = slice(num_special, None, 2), slice(num_special + 1, None, 2)
    halves = metric[:, sources], metric[:, destinations]  # (B, S, D), (B, T, D)
    num_sources, channels = halves[0].shape[1:]
    margin = channels * 2.0**-22  # of a sum of so many rounded products, and of two lengths
    if num_sources**2 * channels >= FEWEST_PRODUCTS and _has_bfloat16_products():
        margin, halves = BFLOAT16_MARGIN, (halves[0].bfloat16(), halves[1].bfloat16())
    level = np.float32(threshold - margin)
    with full_precision(metric.device):
        scores = torch.bmm(halves[0], halves[1].transpose(1, 2)).float()  # (B, S, T)
    of_sources, of_destinations = lengths[:, sources, None], lengths[:, None, destinations]  # (B, S, 1), (B, 1, T)
    if num_merged is not None:
        cosines = scores.div_(torch.from_numpy(of_sources * of_destinations))
        best = cosines.amax(dim=-1).numpy()
        return np.flatnonzero(cosines.numpy() > _bound_of_best(best, level, margin, num_merged)[..., None])
    bound = of_sources * level * of_destinations
    if padding is not None:
        is_padding = padding.numpy()
        bound[is_padding[:, sources]] = np.inf
        bound.transpose(0, 2, 1)[is_padding[:, destinations]] = np.inf
    return np.flatnonzero(scores.numpy() > bound)


def _bound_of_best(best: Singles, level: np.float32, margin: float, num_merged: int) -> Singles:
    """Return the cosine above which a source's pairs are looked at, (B, S), from the `best` of its pairs (B, S)."""
    if num_merged == 0:
        return np.full_like(best, np.inf)
    doubt = np.float32(2 * margin)  # of a difference of two
    least = np.partition(best, -num_merged, axis=1)[:, -num_merged, None] - doubt  # (B, 1)
    return np.where(best < least, np.float32(np.inf), np.minimum(best - doubt, level))


@functools.cache
def _has_bfloat16_products() -> bool:
    """Return whether this CPU has instructions that multiply matrices in bfloat16, several times as fast."""
    has_instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public name before torch 2.10
    return torch.backends.mkldnn.is_available() and has_instructions is not None and has_instructions()


def _cosine(tokens: Tensor, sources: Integers, destinations: Integers) -> Floats:
    """Return the cosine of pairs of tokens (R, D), in double precision, (E,)."""
    step = max(CACHED // tokens.shape[1], 1)
    parts = [slice(start, start + step) for start in range(0, sources.shape[0], step)]
    return np.concatenate([_cosine_of_rows(tokens, sources[part], destinations[part]) for part in parts])


def _cosine_of_rows(tokens: Tensor, sources: Integers, destinations: Integers) -> Floats:
    a, b = (tokens.index_select(0, torch.from_numpy(rows)).double().numpy() for rows in (sources, destinations))
    squares = np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b)
    return np.einsum("ij,ij->i", a, b) / np.sqrt(np.maximum(squares, 1e-48))


def _fusion_weights(
    cosine: Floats, row: Integers, num_rows: int, threshold: float, eps: float
) -> tuple[Floats, Floats, Booleans]:
    """Return W^F of equations 3 to 8 for pairs (E,) of the source `row`, its shares, and which rows have any, (R,)."""
    sparse = np.maximum(cosine - threshold, 0)
    total = np.bincount(row, sparse, num_rows)
    weights = sparse / (total + eps)[row]
    count = np.bincount(row, weights / (weights + eps), num_rows)
    zeta = total / ((total + eps) * (count + eps))
    pruned = weights - zeta[row]
    pruned[pruned <= TIE] = 0
    total = np.bincount(row, pruned, num_rows)
    total_of_pair = total[row]
    return pruned / (total_of_pair + eps), pruned / np.maximum(total_of_pair, TIE), total > 0


def _best_matched(
    cosine: Floats, row: Integers, weights: tuple[Floats, Floats, Booleans], num_merged: int, batch_size: int
) -> tuple[Floats, Floats, Booleans]:
    """Let the `num_merged` best matched sources of each image merge: their weights and shares (E,), and rows (R,).

    One that no weight holds (nothing above the threshold, or a tie) goes to its best destination whole. At least so
    many rows of each image have pairs.
    """
    weight, share, gone = weights
    first = np.flatnonzero(np.diff(row, prepend=-1))  # the first pair of each row that has any
    best = np.full(gone.shape, -np.inf)  # (R,)
    best[row[first]] = np.maximum.reduceat(cosine, first)
    order = np.argsort(-best.reshape(batch_size, -1), axis=1, kind="stable")[:, :num_merged]
    merged: Booleans = np.zeros(best.shape, dtype=np.bool_)
    merged[(order + np.arange(0, len(best), len(best) // batch_size)[:, None]).reshape(-1)] = True
    best_pairs = np.flatnonzero(cosine == best[row])
    whole = best_pairs[np.diff(row[best_pairs], prepend=-1) > 0]  # the first of equals
    whole = whole[~gone[row[whole]]]
    weight[whole] = share[whole] = 1
    is_merged = merged[row].astype(np.float64)
    return weight * is_merged, share * is_merged, merged

"""MaMe's matching on a CPU: the few pairs of tokens above the threshold, instead of matrices of zeros.

In real images a source has one to four destinations above the threshold, of a hundred. A product in low precision
finds the pairs that may be above it; equations 2 to 8 are computed in double precision for those pairs alone. So the
choices are those of the dense form, ties included, and do not depend on what else is in the batch.

All but the product is in NumPy: a single image has so few pairs that little but the calls costs time, and after a
block's products have filled the caches a call of PyTorch takes ten microseconds and more, one of NumPy one or two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..similarity import TOO_LONG
from .pair_weights import PairWeights, differentiable_weights, pair_weights
from .scores import SHORTEST
from .screen import Booleans, Floats, Integers, Singles, candidate_pairs

LOWEST_THRESHOLD = 0.1
"""Below this threshold most pairs are connected."""
MOST_PAIRS = 1 / 16
"""The share of all pairs above which the dense form is faster: rows are gathered slower than matrices multiplied.

Two pairs a source are few at any number of destinations.
"""
CACHED = 1 << 17
"""Numbers in double precision that are worked on at a time, so that they stay in the processor's cache."""


class Connections(NamedTuple):
    """Pairs of tokens with the weights W^F of equation 8, some of which may be zero; ordered by destination.

    Attributes:
        image, destination, source: (E,), the image of a pair, the number of its destination among those of all images
            (B * T,), and of its source among theirs (B * S,).
        rows: (2, E), the source and the destination among all tokens (B * N,).
        weight, share: (E,), W^F, and the same without epsilon, which sums to 1 over the pairs of a fused source.
        gone: (B, S), the sources that are fused.
        num_special, num_destinations: how many leading tokens are set aside, and T.
        differentiable: (E,), the weights again, through which gradients reach the tokens; `None` without a graph.
    """

    image: Integers
    destination: Integers
    source: Integers
    rows: Integers
    weight: Floats
    share: Floats
    gone: Booleans
    num_special: int
    num_destinations: int
    differentiable: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.num_special + self.gone.shape[1] + self.num_destinations

    def dense(self) -> Tensor:
        """Return W^F, (B, T, S)."""
        weights = torch.from_numpy(self.weight) if self.differentiable is None else self.differentiable
        batch_size, num_sources = self.gone.shape
        places = self.image, self.destination % self.num_destinations, self.source % num_sources
        weights_at = tuple(torch.from_numpy(place) for place in places)
        return weights.new_zeros((batch_size, self.num_destinations, num_sources)).index_put(weights_at, weights)


def find_connections(
    metric: Tensor,
    threshold: float,
    num_special: int,
    eps: float,
    padding: Booleans | None,
    num_merged: int | None = None,
) -> Connections | None:
    """Return the connections of tokens (B, N, D), even sources to odd destinations; `padding` is (B, N).

    With `num_merged` so many sources of each image are connected, those with the most similar destinations.

    A token that is not a number is like no other: no comparison with it is true. `None` where the dense form is to be
    used: too many pairs are above the threshold, or such a token is there and `num_merged` have to merge.
    """
    has_graph = metric.requires_grad and torch.is_grad_enabled()
    full = metric.detach()
    if full.dtype not in (torch.float32, torch.float64):
        full = full.float()
    full = full.contiguous()
    batch_size, num_tokens, channels = full.shape
    num_destinations = (num_tokens - num_special) // 2
    num_sources = num_tokens - num_special - num_destinations
    if num_destinations == 0 or batch_size == 0:
        return None
    lengths = torch.linalg.vector_norm(full, dim=-1).numpy()  # (B, N)
    if num_merged is not None and not lengths.max() < TOO_LONG:  # false where one is not a number, too
        return None
    np.maximum(lengths, SHORTEST, out=lengths)
    if padding is not None:
        lengths[padding] = np.inf  # like no other
    candidates = candidate_pairs(full, lengths, threshold, num_special, num_merged)
    selected = _select(candidates, is_fixed=num_merged is not None)
    if selected is None:
        return None
    image, destination, source = selected
    rows = np.empty((2, source.shape[0]), np.int64)
    rows[0] = 2 * source + image * (num_tokens - 2 * num_sources)
    rows[1] = 2 * destination + image * (num_tokens - 2 * num_destinations) + 1
    rows += num_special
    differentiable = None
    if source.shape[0] == 0:
        none = np.empty(0)
        weights = PairWeights(none, none, np.zeros(batch_size * num_sources, bool), np.empty(0, bool))
    else:
        cosine = _cosines(full.view(-1, channels).numpy(), rows)
        weights = pair_weights(cosine, source, batch_size * num_sources, threshold, eps)
        if num_merged is not None:
            weights = _best_matched(cosine, source, weights, num_merged, batch_size)
        if has_graph:
            differentiable = differentiable_weights(metric, rows, cosine, source, weights, threshold, eps)
    weight, share, gone = weights.weight, weights.share, weights.gone.reshape(batch_size, num_sources)
    sizes = num_special, num_destinations
    return Connections(image, destination, source, rows, weight, share, gone, *sizes, differentiable)


def _select(candidates: Booleans, is_fixed: bool) -> tuple[Integers, Integers, Integers] | None:
    """Return image, destination and source of the candidate pairs (B, T, S) that count; `None` where they are many.

    Where no number is fixed, a source with one destination has W = zeta, and is preserved: its pair does not count.
    """
    batch_size, num_destinations, num_sources = candidates.shape
    num_rows = batch_size * num_sources
    if np.count_nonzero(candidates) > max(MOST_PAIRS * candidates.size, 2 * num_rows, 64):
        return None
    pairs = candidates.ravel().nonzero()[0]
    destination, source = np.divmod(pairs, num_sources)
    if batch_size == 1:
        image = np.zeros_like(destination)
    else:
        image = destination // num_destinations
        source += image * num_sources
    if is_fixed:
        return image, destination, source
    several = (np.bincount(source, minlength=num_rows) > 1)[source]
    return image[several], destination[several], source[several]


def _cosines(tokens: Singles | Floats, rows: Integers) -> Floats:
    """Return the cosine of pairs of tokens (R, D), whose `rows` are (2, E), in double precision, (E,)."""
    step = max(CACHED // (2 * tokens.shape[1]), 1)
    if rows.shape[1] <= step:
        return _cosines_of_few(tokens, rows)
    parts = range(0, rows.shape[1], step)
    return np.concatenate([_cosines_of_few(tokens, rows[:, start : start + step]) for start in parts])


def _cosines_of_few(tokens: Singles | Floats, rows: Integers) -> Floats:
    a, b = tokens.take(rows, axis=0).astype(np.float64, copy=False)
    squares = np.vecdot(a, a) * np.vecdot(b, b)
    return np.vecdot(a, b) / np.sqrt(np.maximum(squares, SHORTEST**4))


def _best_matched(
    cosine: Floats, row: Integers, weights: PairWeights, num_merged: int, batch_size: int
) -> PairWeights:
    """Let the `num_merged` best matched sources of each image merge: their weights, and which rows (R,) those are.

    One that no weight holds (nothing above the threshold, or a tie) goes to its best destination whole. At least so
    many rows of each image have pairs.
    """
    weight, share, gone, _ = weights
    best = np.full(gone.shape, -np.inf)  # (R,)
    np.maximum.at(best, row, cosine)
    order = np.argsort(-best.reshape(batch_size, -1), axis=1, kind="stable")[:, :num_merged]
    merged: Booleans = np.zeros(best.shape, dtype=np.bool_)
    merged[(order + np.arange(0, len(best), len(best) // batch_size)[:, None]).reshape(-1)] = True
    (whole,) = ((cosine == best[row]) & ~gone[row]).nonzero()
    first = np.full(best.shape, -1)
    first[row[whole[::-1]]] = whole[::-1]  # of equals the one that is written last stays, which is the first of them
    whole = first[first >= 0]
    weight[whole] = share[whole] = 1
    is_merged = merged[row].astype(np.float64)
    is_fused = weights.is_fused & merged[row]
    return PairWeights(weight * is_merged, share * is_merged, merged, is_fused)

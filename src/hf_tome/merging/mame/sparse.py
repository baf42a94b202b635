"""MaMe's matching without a graph: the few pairs of tokens above the threshold, instead of matrices of zeros.

In real images a source has one to four destinations above the threshold, of a hundred. A product in single precision
finds the pairs that may be above it; equations 2 to 8 are computed in double precision for those pairs alone. So the
choices are those of the dense form, ties included, and do not depend on what else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..indexing import take
from ..similarity import TOO_LONG, full_precision

TIE = 1e-6
"""A weight that exceeds its column's threshold by no more than this is a tie, not a connection.

By equations 5 to 8 a source with one destination above tau, or with equal weights, has W = zeta, so its column is zero
and it is preserved. In floating point the sign of W - zeta is rounding noise there, and must not decide. (Without
pruning the threshold is 0: a source that is just as similar as tau has weights of rounding noise alone.)
"""
SCREEN_MARGIN = 1e-5
"""By how much a cosine in single precision may be wrong: over ten times the largest error seen with 192 channels."""
LOWEST_THRESHOLD = 0.1
"""Below this threshold most pairs are connected."""
MOST_PAIRS = 1 / 32
"""The share of all pairs above which the dense form is faster: rows are gathered slower than matrices multiplied.

Two pairs a source are few at any number of destinations.
"""


@dataclass(frozen=True)
class Connections:
    """The weights W^F of equation 8, of the pairs that may have any, ordered by image and source.

    Attributes:
        row (`Tensor`): (E,) int64, the source, as a number of the flat (B * S,).
        member (`Tensor`): (E,) int64, the source, as a number of the flat tokens (B * N,).
        image, destination (`Tensor`): (E,) int64, the image, and the number among its destinations.
        weight, share (`Tensor`): (E,) float64, W^F, and the same without epsilon, which sums to 1 in each column.
        gone (`Tensor`): (B, S) bool, the sources that are fused.
        num_destinations (`int`): T.
    """

    row: Tensor
    member: Tensor
    image: Tensor
    destination: Tensor
    weight: Tensor
    share: Tensor
    gone: Tensor
    num_destinations: int

    def dense(self) -> Tensor:
        """Return W^F, (B, T, S)."""
        batch_size, num_sources = self.gone.shape
        weights = self.weight.new_zeros((batch_size, num_sources, self.num_destinations))
        weights.flatten(0, 1).index_put_((self.row, self.destination), self.weight)
        return weights.transpose(1, 2)


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
    metric = metric.to(torch.promote_types(metric.dtype, torch.float32))
    batch_size, num_tokens, _ = metric.shape
    length = torch.linalg.vector_norm(metric, dim=-1)  # (B, N)
    if num_tokens - num_special < 2 or batch_size == 0 or not length.max().item() < TOO_LONG:
        return None
    num_sources = (num_tokens - num_special + 1) // 2
    num_destinations = num_tokens - num_special - num_sources
    num_rows = batch_size * num_sources
    level, with_best = threshold - SCREEN_MARGIN, num_merged is not None
    row, destination = _screen(metric, length.clamp_(min=1e-12), level, num_special, padding, with_best)
    if row.shape[0] > max(MOST_PAIRS * num_rows * num_destinations, 2 * num_rows, 64):
        return None
    if num_merged is None:
        # A source with one destination has W = zeta, and is preserved.
        (several,) = (torch.bincount(row, minlength=num_rows).index_select(0, row) > 1).nonzero(as_tuple=True)
        row, destination = row.index_select(0, several), destination.index_select(0, several)
    image = row.div(num_sources, rounding_mode="floor")
    member = torch.add(image * (num_tokens - 2 * num_sources) + num_special, row, alpha=2)
    if row.shape[0] == 0:
        weight, gone = metric.new_empty(0, dtype=torch.float64), row.new_zeros(num_rows, dtype=torch.bool)
        share = weight
    else:
        target = torch.add(image * num_tokens + (num_special + 1), destination, alpha=2)
        cosine = _cosine(metric.flatten(0, 1), member, target)
        weight, share, gone = _fusion_weights(cosine, row, num_rows, threshold, eps)
        if num_merged is not None:
            weight, share, gone = _best_matched(cosine, row, (weight, share, gone), num_merged, batch_size)
    gone = gone.view(batch_size, num_sources)
    return Connections(row, member, image, destination, weight, share, gone, num_destinations)


def _screen(
    metric: Tensor, length: Tensor, level: float, num_special: int, padding: Tensor | None, with_best: bool
) -> tuple[Tensor, Tensor]:
    """Return the pairs whose cosine is above `level`, (E,) numbers of sources (of B*S) and of destinations (of T).

    `with_best` adds those that may be a source's most similar one.
    """
    sources, destinations = slice(num_special, None, 2), slice(num_special + 1, None, 2)
    inverse, bound = length[:, destinations].reciprocal(), length[:, sources] * level
    if padding is not None:
        inverse = inverse.masked_fill_(padding[:, destinations], 0)
        bound = bound.masked_fill_(padding[:, sources], torch.inf)
    with full_precision(metric.device):
        scores = torch.bmm(metric[:, sources], metric[:, destinations].transpose(1, 2))  # (B, S, T)
    best = scores.mul_(inverse[:, None]).amax(dim=-1)
    if with_best:
        bound = torch.minimum(bound, best - 2 * SCREEN_MARGIN * length[:, sources])
    # Most sources have no destination: the search is for those that have.
    rows = (best > bound).view(-1).nonzero()[:, 0]
    scores, bound = scores.flatten(0, 1).index_select(0, rows), bound.reshape(-1).index_select(0, rows)
    row, destination = (scores > bound[:, None]).nonzero().unbind(dim=1)
    return rows.index_select(0, row), destination


def _cosine(tokens: Tensor, sources: Tensor, destinations: Tensor) -> Tensor:
    """Return the cosine of pairs of tokens (R, D), in double precision, (E,)."""
    a, b = (tokens.index_select(0, rows).double() for rows in (sources, destinations))  # (E, D)
    lengths = [torch.linalg.vector_norm(x, dim=-1).clamp_(min=1e-12) for x in (a, b)]
    return a.mul_(b).sum(dim=-1) / (lengths[0] * lengths[1])


def _fusion_weights(
    cosine: Tensor, row: Tensor, num_rows: int, threshold: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return W^F of equations 3 to 8 for pairs (E,) of the source `row`, its shares, and which rows have any, (R,)."""

    sums = cosine.new_zeros((3, num_rows)).unbind()
    sparse = torch.relu(cosine - threshold)
    total = sums[0].index_add_(0, row, sparse)
    bounded = total + eps
    weights = sparse / bounded.index_select(0, row)
    zeta = total / bounded / (sums[1].index_add_(0, row, weights / (weights + eps)) + eps)
    pruned = torch.threshold(weights - zeta.index_select(0, row), TIE, 0.0)
    total = sums[2].index_add_(0, row, pruned)
    total_of_pair = total.index_select(0, row)
    return pruned / (total_of_pair + eps), pruned / total_of_pair.clamp(min=TIE), total > 0


def _best_matched(
    cosine: Tensor, row: Tensor, weights: tuple[Tensor, Tensor, Tensor], num_merged: int, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Let the `num_merged` best matched sources of each image merge: their weights and shares (E,), and rows (R,).

    One that no weight holds (nothing above the threshold, or a tie) goes to its best destination whole.
    """
    weight, share, gone = weights
    best = cosine.new_full(gone.shape, -torch.inf).scatter_reduce_(0, row, cosine, "amax")
    order = best.view(batch_size, -1).argsort(dim=1, descending=True, stable=True)
    merged = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :num_merged], True).view(-1)
    number = torch.arange(row.shape[0], device=row.device)
    is_best = cosine == best.index_select(0, row)
    first = row.new_full(gone.shape, row.shape[0])
    first.scatter_reduce_(0, row, torch.where(is_best, number, row.shape[0]), "amin")
    whole = (number == first.index_select(0, row)) & ~gone.index_select(0, row)
    is_merged = merged.index_select(0, row)
    weight, share = (torch.where(whole, 1.0, values) * is_merged for values in (weight, share))
    return weight, share, merged


def merge_connected(
    x: Tensor, size: Tensor, connections: Connections, num_special: int, representative: Tensor
) -> tuple[Tensor, Tensor]:
    """Fuse sources into destinations (equation 9): (B, N, C) and (B, N, 1) to (B, M, C) and (B, M, 1).

    `representative` (B, M) are the tokens that come out: special, destinations, preserved sources, padding.
    """
    batch_size, num_output = representative.shape
    out, out_size = take(x, representative), take(size, representative)
    if connections.row.shape[0] == 0:
        return out, out_size
    target = connections.image * num_output + connections.destination + num_special  # (E,), of (B*M,)
    full = torch.promote_types(x.dtype, torch.float32)
    weight = connections.weight.to(full)
    # Normalised before the sum: a sum of tokens may be beyond half precision where their mean is not.
    own = weight.new_ones(batch_size * num_output).index_add_(0, target, weight).reciprocal_()
    # A source that is not a number spoils none but itself.
    members = x.reshape(-1, x.shape[-1]).index_select(0, connections.member).to(full).nan_to_num_(0.0, 0.0, 0.0)
    members.mul_((weight * own.index_select(0, target))[:, None])
    mean = out.to(full).view(-1, x.shape[-1])
    mean = mean.mul_(own[:, None]).index_add_(0, target, members).view_as(out)
    # Sizes are counts: they weight pooling. Epsilon in equation 8 leaves columns a little short of 1; a source's size
    # is shared out whole.
    shares = connections.share.to(size.dtype) * size.reshape(-1).index_select(0, connections.member)
    out_size.view(-1).index_add_(0, target, shares)
    return in_range(mean.to(x.dtype), out), out_size


def in_range(mean: Tensor, tokens: Tensor) -> Tensor:
    """Keep means in float16 finite where the `tokens` are: rounded shares may add up to a little more than 1."""
    if mean.dtype != torch.float16:
        return mean
    largest = torch.finfo(mean.dtype).max
    return torch.where(tokens.isfinite(), mean.clamp(-largest, largest), mean)

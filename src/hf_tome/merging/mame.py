"""MaMe: matrix merging, and MaRe, its restoration (Huo & Li, CVPR 2026 Findings, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Merge, _check_tokens, check_metric, size_dtype
from .partition import split
from .similarity import BOUNDED_DISTANCES, clean, lookup

TIE = 1e-6
"""A weight that exceeds its column's threshold by no more than this is a tie, not a connection.

By equations 5 to 8 a source with one destination above tau, or with equal weights, has W = zeta, so its column is zero and
it is preserved. In floating point the sign of W - zeta is rounding noise there, and must not decide.
"""


class MatrixMerge(Merge):
    """A merge in which a source is shared out among several destinations.

    Attributes:
        weights (`Tensor`): (B, T, S), the fusion weights W^F of equation 8, columns of preserved sources zero.
        sources, destinations (`Tensor`): (S,) and (T,) int64, their positions in the input.
        order (`Tensor`): (B, M) int64, the rows of [special, destinations, sources] that come out.
        real (`Tensor` or `None`): (B, M) bool, False where a row of `order` is padding.
    """

    def __init__(
        self,
        weights: Tensor,
        sources: Tensor,
        destinations: Tensor,
        order: Tensor,
        num_special: int,
        real: Tensor | None = None,
    ):
        self.weights, self.sources, self.destinations = weights, sources, destinations
        self.order, self.real, self.num_special = order, real, num_special
        self.num_input = num_special + len(sources) + len(destinations)
        self.num_output = order.shape[1]
        # The grouping [special, destinations, sources] of the input positions, (N,)
        special = torch.arange(num_special, device=order.device)
        self._grouped = torch.cat([special, destinations, sources])

    @property
    def preserved(self) -> Tensor:
        """Which sources stay tokens of their own, (B, S) bool (the mask m of section 3.3)."""
        return self.weights.sum(dim=1) == 0

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fuse sources into destinations (equation 9) and concatenate (equation 10); see the base class.

        A source's size is shared out by its column, so that sizes still sum to N.
        """
        _check_tokens("x", x, self.num_input)
        if size is None:
            size = x.new_ones((*x.shape[:2], 1), dtype=size_dtype(x))
        special, destinations, sources = self._split(x)
        special_size, destination_size, source_size = self._split(size)
        weights = self.weights.to(x.dtype)
        fused = (destinations + weights @ sources) / (1 + weights.sum(dim=-1, keepdim=True))
        # Sizes are counts: they weight pooling, but no gradient runs through them. Epsilon in equation 8 leaves columns
        # a little short of 1; a source's size is shared out whole.
        share = self.weights.detach().to(size.dtype)
        total = share.sum(dim=1, keepdim=True)
        share = share / torch.where(total > 0, total, torch.ones_like(total))
        fused_size = destination_size + share @ source_size

        grouped = torch.cat([special, fused, sources], dim=1)
        grouped_size = torch.cat([special_size, fused_size, source_size], dim=1)
        out_size = grouped_size.gather(1, self.order[..., None])
        if self.real is not None:
            out_size = out_size * self.real[..., None]
        return grouped.gather(1, self.order[..., None].expand(-1, -1, x.shape[-1])), out_size

    def unmerge(self, x: Tensor) -> Tensor:
        """Read a fused source back as its column's weighted sum of destinations (MaRe); see the base class."""
        _check_tokens("x", x, self.num_output)
        batch_size, _, channels = x.shape
        # (B, M, C) -> (B, N, C) in the order [special, destinations, sources]; fused sources are still zero.
        rows = x if self.real is None else x.masked_fill(~self.real[..., None], 0)
        index = self.order[..., None].expand(-1, -1, channels)
        grouped = x.new_zeros((batch_size, self.num_input, channels)).scatter(1, index, rows)
        special, destinations, sources = grouped.split(
            [self.num_special, len(self.destinations), len(self.sources)], dim=1
        )
        restored = self.weights.to(x.dtype).transpose(1, 2) @ destinations
        sources = torch.where(self.preserved[..., None], sources, restored)
        grouped = torch.cat([special, destinations, sources], dim=1)
        return grouped.index_select(1, self._grouped.argsort())

    def detach(self) -> MatrixMerge:
        """Return the same merge with constant weights (see the base class)."""
        return MatrixMerge(
            self.weights.detach(), self.sources, self.destinations, self.order, self.num_special, self.real
        )

    def may_pad(self, was_padded: bool) -> bool:
        """Whether some output is padding (see the base class)."""
        return self.real is not None

    @property
    def source(self) -> Tensor:
        """Where each input token went, a shared source to its heaviest destination (see the base class)."""
        batch_size = self.order.shape[0]
        home = self.order.new_full((batch_size, self.num_input), -1)  # output row of each row of `grouped`
        outputs = torch.arange(self.num_output, device=home.device).expand(batch_size, -1)
        if self.real is not None:
            outputs = torch.where(self.real, outputs, -1)
        home = home.scatter(1, self.order, outputs)
        heaviest = self.weights.argmax(dim=1) + self.num_special  # (B, S)
        start = self.num_special + len(self.destinations)
        moved = torch.where(self.preserved, home[:, start:], home.gather(1, heaviest))
        return torch.cat([home[:, :start], moved], dim=1).index_select(1, self._grouped.argsort())

    @property
    def representative(self) -> Tensor:
        """The input token that each output token started from (see the base class)."""
        return self._grouped[self.order]

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[:, : self.num_special], x[:, self.destinations], x[:, self.sources]


def matrix_matching(
    metric: Tensor,
    threshold: float = 0.8,
    num_special: int = 0,
    eps: float = 1e-6,
    adaptive_pruning: bool = True,
    *,
    batching: str = "union",
    keep_ratio: float | None = None,
    size: Tensor | None = None,
    distance: str = "cosine",
    partition: str = "alternating",
    seed: int = 0,
) -> MatrixMerge:
    """Match sources to every similar enough destination by one matrix (MaMe, equations 1 to 8).

    Args:
        metric (`Tensor`): (B, N, D), what similarity is measured on, usually the tokens themselves.
        threshold (`float`): tau of equation 3.
        num_special (`int`): leading tokens that are set aside. Of the rest, even positions are sources.
        eps (`float`): epsilon of equations 4, 5, 6 and 8.
        adaptive_pruning (`bool`): equations 5 to 8; without them W of equation 4 is used.
        batching (`str`): `"union"`, the paper's rule, preserves a source in all images if any image preserves it.
            `"pad"` lets each image keep its own, and pads the shorter ones with tokens of size 0 at the end.
            (`MergeConfig` uses `"pad"`: with `"union"` hardly anything merges in a batch of real photographs.)
        keep_ratio (`float`, *optional*): keep this share of the unprotected tokens, at least the destinations: the
            sources with the most similar destination merge, whatever the threshold (section 4, training from scratch).
        size (`Tensor`, *optional*): (B, N, 1), where 0 marks padding, which takes no part and comes out last.
        distance, partition (`str`): the ablations of MaMe's figure 2.
        seed (`int`): for `partition="random"`.

    Returns:
        `MatrixMerge`: special tokens, fused destinations, preserved sources, padding.

    Raises:
        ValueError: an unknown `batching`, or a metric of the wrong shape.
    """
    check_metric(metric, num_special)
    if batching not in ("pad", "union"):
        raise ValueError(f"`batching` is {batching!r}; it takes 'pad' or 'union'.")
    num_tokens = metric.shape[1]
    sources, destinations = split(num_tokens, num_special, partition, metric.device, first=num_special, seed=seed)
    metric = _precise(clean(metric))
    similarity = lookup(distance, BOUNDED_DISTANCES)(metric[:, sources], metric[:, destinations]).transpose(1, 2)
    padding = None if size is None else size[..., 0] == 0  # (B, N)
    if padding is not None:
        apart = padding[:, destinations, None] | padding[:, None, sources]
        similarity = similarity.masked_fill(apart, -torch.inf)

    weights = _fusion_weights(similarity, threshold, eps, adaptive_pruning)  # (B, T, S)
    num_output = None
    if keep_ratio is not None:
        weights, num_output = _best_matched(similarity, weights, keep_ratio, padding, num_special)
    elif batching == "union":
        weights = weights * (weights.detach().sum(dim=1, keepdim=True) > 0).all(dim=0, keepdim=True)
    merged = weights.detach().sum(dim=1) > 0  # (B, S)
    order, real = _arrange(merged, padding, sources, destinations, num_special, num_output)
    return MatrixMerge(weights, sources, destinations, order, num_special, real)


def _precise(metric: Tensor) -> Tensor:
    # Equation 8 divides by sums of differences that may be a few times TIE, so rounding of the similarities is amplified
    # a hundredfold. Double precision is cheap on a CPU; most accelerators are slow at it, or have none.
    return metric.double() if metric.device.type == "cpu" else metric


def _fusion_weights(similarity: Tensor, threshold: float, eps: float, adaptive_pruning: bool) -> Tensor:
    """Return W^F of equations 3 to 8, (B, T, S), from the similarity of destinations (rows) and sources (columns)."""
    # Padding has a similarity of minus infinity, and relu makes it exactly 0.
    sparse = torch.relu(similarity - threshold)
    weights = sparse / (sparse.sum(dim=1, keepdim=True) + eps)
    if not adaptive_pruning:
        return weights
    count = (weights / (weights + eps)).sum(dim=1, keepdim=True)
    zeta = weights.sum(dim=1, keepdim=True) / (count + eps)
    excess = weights - zeta
    pruned = torch.where(excess > TIE, excess, torch.zeros_like(excess))
    return pruned / (pruned.sum(dim=1, keepdim=True) + eps)


def _best_matched(
    similarity: Tensor, weights: Tensor, keep_ratio: float, padding: Tensor | None, num_special: int
) -> tuple[Tensor, int]:
    """Let the best matched sources merge, as many as `keep_ratio` asks of each image.

    Returns the weights (B, T, S) and M, the rows that come out of the longest image.
    """
    batch_size, num_destinations, num_sources = similarity.shape
    num_rest = num_destinations + num_sources
    num_output = num_special + max(math.ceil(keep_ratio * num_rest), num_destinations)
    if num_destinations == 0:
        return weights, num_output
    best, partner = similarity.detach().max(dim=1)  # (B, S)
    if padding is None:
        num_merged: Tensor | int = num_special + num_rest - num_output
    else:
        real = (~padding[:, num_special:]).sum(dim=1, keepdim=True)  # (B, 1)
        num_merged = torch.minimum(real - torch.ceil(keep_ratio * real).long(), (real + 1) // 2)
    rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    merged = (rank < num_merged) & torch.isfinite(best)
    # A chosen source that no weight holds (nothing above the threshold, or a tie) goes to its best destination whole.
    whole = torch.nn.functional.one_hot(partner, num_destinations).transpose(1, 2).to(weights.dtype)
    weights = torch.where(weights.detach().sum(dim=1, keepdim=True) > 0, weights, whole)
    return weights * merged[:, None, :], num_output


def _arrange(
    merged: Tensor,
    padding: Tensor | None,
    sources: Tensor,
    destinations: Tensor,
    num_special: int,
    num_output: int | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the rows of [special, destinations, sources] that come out, (B, M), and which are real, (B, M).

    Real rows first, in order; where images differ in number, the shorter ones are filled up with rows that are not real.
    `num_output` is M where it is known beforehand: then nothing depends on the data, so that graphs can be compiled.
    """
    gone = merged.new_zeros((merged.shape[0], num_special + len(destinations)))
    gone = torch.cat([gone, merged], dim=1)  # (B, N) in the order [special, destinations, sources]
    if padding is not None:
        special = torch.arange(num_special, device=merged.device)
        gone = gone | padding[:, torch.cat([special, destinations, sources])]
    ragged = padding is not None
    if num_output is None:
        counts = (~gone).sum(dim=1)
        num_output, fewest = torch.stack([counts.max(), counts.min()]).tolist()
        ragged = fewest < num_output
    order = gone.int().argsort(dim=1, stable=True)[:, :num_output]
    return order, ~gone.gather(1, order) if ragged else None

"""MaMe: matrix merging (Huo & Li, CVPR 2026 Findings, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base import check_arguments
from ..indexing import has_cpu_values, take
from ..partition import sources_beside, split
from .fusion_weights import fusion_weights
from .matrix_merge import MatrixMerge, grouped_positions
from .scores import paired_scores
from .sparse import LOWEST_THRESHOLD, find_connections
from .sparse_merge import SparseMatrixMerge

BATCHINGS = ("pad", "union")
"""How images of a batch that keep unequal numbers of tokens go together; see `matrix_matching`."""


def matrix_matching(
    metric: Tensor,
    threshold: float = 0.8,
    num_special: int = 0,
    eps: float = 1e-6,
    adaptive_pruning: bool = True,
    *,
    batching: str = "pad",
    keep_ratio: float | None = None,
    size: Tensor | None = None,
    distance: str = "cosine",
    partition: str = "alternating",
    seed: int = 0,
    causal: bool = False,
    destinations: Tensor | None = None,
) -> MatrixMerge:
    """Match sources to every similar enough destination by one matrix (MaMe, equations 1 to 8).

    Args:
        metric (`Tensor`): (B, N, D), what similarity is measured on, usually the tokens themselves.
        threshold (`float`): tau of equation 3.
        num_special (`int`): leading tokens that are set aside. Of the rest, even positions are sources.
        eps (`float`): epsilon of equations 4, 5, 6 and 8.
        adaptive_pruning (`bool`): equations 5 to 8; without them W of equation 4 is used.
        batching (`str`): `"pad"` lets each image keep its own sources, and pads the shorter ones with tokens of size 0
            at the end. `"union"`, the paper's rule, preserves a source in all images if any image preserves it: hardly
            anything merges then in a batch of real photographs.
        keep_ratio (`float`, *optional*): keep this share of the unprotected tokens, at least the destinations: the
            sources with the most similar destination merge, whatever the threshold (section 4, training from scratch).
        size (`Tensor`, *optional*): (B, N, 1), where 0 marks padding, which takes no part and comes out last.
        distance, partition (`str`): the ablations of MaMe's figure 2.
        seed (`int`): for `partition="random"`.
        causal (`bool`): weights of earlier destinations are zeroed (section 5), so that tokens merge into later ones
            alone. As the paper prints it, what is left of a column is not brought back to 1.
        destinations (`Tensor`, *optional*): (B, T), ascending, the destinations themselves; all other tokens are
            sources. There are no special tokens and no padding then.

    Returns:
        `MatrixMerge`: special tokens, fused destinations, preserved sources, padding.

    Raises:
        ValueError: an unknown name, a number out of range, or tensors of the wrong shape.
    """
    check_arguments(metric, num_special, size=size)
    if batching not in BATCHINGS:
        raise ValueError(f"`batching` is {batching!r}; it takes one of {', '.join(map(repr, BATCHINGS))}.")
    if keep_ratio is not None and destinations is None and not 0.5 <= keep_ratio <= 1:
        raise ValueError(f"`keep_ratio` is {keep_ratio!r}; it takes None, or a number from 0.5 to 1.")
    if eps <= 0:
        raise ValueError(f"`eps` is {eps!r}; it takes a number above 0.")
    num_output = None if keep_ratio is None else num_special + kept_tokens(metric.shape[1] - num_special, keep_ratio)
    is_plain = destinations is None and not causal and (distance, partition) == ("cosine", "alternating")
    is_plain = is_plain and adaptive_pruning and batching == "pad" and (keep_ratio is None or size is None)
    if is_plain and threshold >= LOWEST_THRESHOLD and _is_eager(metric):
        num_merged = None if num_output is None else metric.shape[1] - num_output
        is_padding = None if size is None else size.detach()[..., 0].numpy() == 0  # (B, N)
        connections = find_connections(metric, threshold, num_special, eps, is_padding, num_merged)
        if connections is not None:
            return SparseMatrixMerge(connections, is_padding, num_output, checked=metric)
    padding = None if size is None else size[..., 0] == 0  # (B, N)
    if destinations is None:
        sources, destinations = split(
            metric.shape[1], num_special, partition, metric.device, first=num_special, seed=seed, padding=padding
        )
    else:
        sources = sources_beside(destinations, metric.shape[1])
    scores = paired_scores(metric, sources, destinations, distance, padding)  # (B, T, S), as in the paper
    # Where gradients run through them, weights are kept no more precise than tokens: half the memory of training.
    has_graph = torch.is_grad_enabled() and metric.requires_grad
    dtype = torch.promote_types(metric.dtype, torch.float32) if has_graph else None
    weights = fusion_weights(scores, threshold, eps, adaptive_pruning, dtype)  # (B, T, S)
    if causal:
        earlier = sources[..., None, :] > destinations[..., :, None]
        weights, scores = weights.masked_fill(earlier, 0), scores.masked_fill(earlier, -torch.inf)
    if keep_ratio is not None:
        weights, num_output = _best_matched(scores, weights, keep_ratio, padding, num_special)
    elif batching == "union":
        merges = weights.detach().sum(dim=1, keepdim=True) > 0  # (B, 1, S)
        if padding is not None:
            merges = merges | take(padding, sources)[:, None]
        weights = weights * merges.all(dim=0, keepdim=True)
    if padding is None and num_output == num_special + destinations.shape[-1]:  # all sources are fused
        order = torch.arange(num_output, device=metric.device).expand(metric.shape[0], -1)
        return MatrixMerge(weights, sources, destinations, order, num_special)
    gone = weights.detach().sum(dim=1) > 0  # (B, S)
    order, real = _order(gone, sources, destinations, num_special, padding, num_output)
    return MatrixMerge(weights, sources, destinations, order, num_special, real)


def _is_eager(metric: Tensor) -> bool:
    """Return whether what is computed may depend on the data, on a CPU."""
    return has_cpu_values(metric)


def _best_matched(
    scores: Tensor, weights: Tensor, keep_ratio: float, padding: Tensor | None, num_special: int
) -> tuple[Tensor, int]:
    """Let the best matched sources merge, as many as `keep_ratio` asks of each image.

    Returns the weights (B, T, S) and M, the rows that come out of the longest image.
    """
    _, num_destinations, num_sources = scores.shape
    num_rest = num_destinations + num_sources
    num_kept = max(math.ceil(keep_ratio * num_rest), num_destinations)
    if num_destinations == 0:
        return weights, num_special + num_kept
    best, partner = scores.detach().max(dim=1)  # (B, S)
    num_merged: Tensor | int = num_rest - num_kept
    if padding is not None:
        num_rest_real = (~padding[:, num_special:]).sum(dim=1, keepdim=True)  # (B, 1)
        # In double precision, as above, so that an image keeps as many as it would alone. (MPS has none.)
        share = num_rest_real.to(torch.float32 if scores.device.type == "mps" else torch.float64)
        share = torch.ceil(keep_ratio * share).long()
        num_merged = num_rest_real - torch.maximum(share, num_rest_real // 2)
    # A chosen source that no weight holds (nothing above the threshold, or a tie) goes to its best destination whole.
    is_empty = weights.detach().sum(dim=1) == 0  # (B, S)
    weights = weights.scatter_add(1, partner[:, None], is_empty[:, None].to(weights.dtype))
    if padding is not None or num_rest - num_kept < num_sources:
        rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        weights = weights * (rank < num_merged)[:, None]
    return weights, num_special + num_kept


def _order(
    gone: Tensor,
    sources: Tensor,
    destinations: Tensor,
    num_special: int,
    padding: Tensor | None,
    num_output: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the rows of [special, destinations, sources] that come out where the sources `gone` (B, S) are fused."""
    gone = nn.functional.pad(gone, (num_special + destinations.shape[-1], 0))  # (B, N)
    if padding is not None:
        gone = gone | take(padding, grouped_positions(num_special, destinations, sources))
    return _arrange(gone, num_output, is_padded=padding is not None)


def _arrange(gone: Tensor, num_output: int | None, is_padded: bool) -> tuple[Tensor, Tensor | None]:
    """Return which rows come out, (B, M), and which of those are real, (B, M), of the rows (B, N) that may be `gone`.

    Real rows first, in order; where images differ in number, the shorter ones are filled up with rows that are gone.
    `num_output` is M where it is known beforehand: then nothing depends on the data, so that graphs can be compiled.
    """
    if num_output is None and gone.shape[0] == 1:
        return (~gone).nonzero()[:, 1][None], None
    if num_output is None:
        counts = (~gone).sum(dim=1)
        num_output, fewest = (
            torch.stack([counts.max(), counts.min()]).tolist() if gone.shape[0] else (gone.shape[1],) * 2
        )
        is_padded = is_padded or fewest < num_output
    order = gone.int().argsort(dim=1, stable=True)[:, :num_output]
    return order, ~gone.gather(1, order) if is_padded else None


def kept_tokens(num_tokens: int, keep_ratio: float) -> int:
    """Return how many of the unprotected tokens `keep_ratio` keeps: the share rounded up, at least destinations."""
    return max(math.ceil(keep_ratio * num_tokens), num_tokens // 2)

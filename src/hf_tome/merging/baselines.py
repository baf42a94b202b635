"""What ToMe's table 2 compares with: random and attention pruning, k-means, greedy matching."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import HardMerge, Merge, check_arguments, check_floating, identity_merge, move_back, pair_merge
from .partition import pseudo_random
from .similarity import similarity, sound


def prune_lowest(score: Tensor, r: int, num_special: int = 0, *, size: Tensor | None = None) -> Merge:
    """Drop the `r` tokens of the lowest score, e.g. the attention they receive (ToMe, table 2, "attn-based").

    Args:
        score (`Tensor`): (B, N); what is no number counts as the lowest.
        r (`int`): tokens to drop, cut to (N - special tokens) // 2, as many as ToMe could merge.
        num_special (`int`): leading tokens that are never dropped.
        size (`Tensor`, *optional*): (B, N, 1), where 0 marks padding. An image loses as many tokens as it would
            alone, and padding comes out last.

    Raises:
        ValueError: a negative `r`, or tensors of the wrong shape.
    """
    check_floating("score", score, "(batch_size, num_tokens)")
    check_arguments(score[..., None], num_special, r, size)
    batch_size, num_tokens = score.shape
    padding = None if size is None else size[..., 0] == 0
    r = min(r, (num_tokens - num_special) // 2)
    if r == 0:
        return identity_merge(batch_size, num_tokens, score.device, padding)
    rest = score[:, num_special:].detach().nan_to_num(torch.finfo(score.dtype).min)
    if padding is not None:
        rest = rest.masked_fill(padding[:, num_special:], torch.inf)
    lowest = rest.argsort(dim=1, stable=True)[:, :r] + num_special
    rows = torch.arange(num_tokens, device=score.device).expand(batch_size, -1)
    kept = move_back(rows, lowest, num_special, padding)[:, : num_tokens - r]
    none = kept.new_empty((batch_size, 0))
    return HardMerge(kept, none, none, num_tokens, padding=padding)


def prune_random(
    batch_size: int,
    num_tokens: int,
    r: int,
    num_special: int,
    device: torch.device,
    *,
    seed: int = 0,
    size: Tensor | None = None,
) -> Merge:
    """Drop `r` random tokens, the same positions in every image and on every device (ToMe, table 2, "random")."""
    score = pseudo_random(num_tokens, seed, device).float()
    return prune_lowest(score.expand(batch_size, -1), r, num_special, size=size)


def greedy_matching(
    metric: Tensor,
    r: int,
    num_special: int = 0,
    *,
    size: Tensor | None = None,
    distance: str = "cosine",
    combine: str = "weighted_mean",
) -> Merge:
    """Merge the most similar pair of all, `r` times, each token once at most (ToMe, table 2, "greedy matching").

    Sequential in `r`; every step looks at all N x N pairs.

    Args:
        metric (`Tensor`): (B, N, D), what similarity is measured on.
        r (`int`): tokens to remove, cut to (N - special tokens) // 2.
        num_special (`int`): leading tokens that are never merged.
        size (`Tensor`, *optional*): (B, N, 1), where 0 marks padding, which takes no part and comes out last.
        distance, combine (`str`): the ablations of ToMe's table 1.

    Raises:
        ValueError: a negative `r`, or a metric of the wrong shape.
    """
    check_arguments(metric, num_special, r, size)
    batch_size, num_tokens, _ = metric.shape
    padding = None if size is None else size[..., 0] == 0
    r = min(r, (num_tokens - num_special) // 2)
    if r == 0:
        return identity_merge(batch_size, num_tokens, metric.device, padding)
    with torch.no_grad():
        rest = torch.arange(num_special, num_tokens, device=metric.device)
        scores, bias = similarity(metric, rest, rest, distance, padding)
        # Finite, so that padding is still used up where real pairs run out; -inf is for what is no pair, or used.
        pairs = (scores + bias[..., None]).nan_to_num(torch.finfo(scores.dtype).min)
        pairs = pairs.masked_fill(pairs.new_ones(pairs.shape[1:], dtype=torch.bool).tril(), -torch.inf)
        used = torch.zeros_like(pairs[:, 0], dtype=torch.bool)
        first, second = [], []
        for _ in range(r):
            available = pairs.masked_fill(used[:, :, None] | used[:, None], -torch.inf)
            best = available.flatten(1).argmax(dim=1)  # (B,), a number in rows x columns
            first.append(best // rest.shape[0])
            second.append(best % rest.shape[0])
            used = used.scatter(1, torch.stack([first[-1], second[-1]], dim=1), True)
        merged = torch.stack(second, dim=1) + num_special  # (B, r)
        partner = torch.stack(first, dim=1) + num_special
        rows = torch.arange(num_tokens, device=metric.device).expand(batch_size, -1)
        return pair_merge(merged, partner, rows, num_special, combine, padding)


def kmeans(
    metric: Tensor,
    r: int,
    num_special: int = 0,
    *,
    iterations: int = 2,
    size: Tensor | None = None,
    combine: str = "weighted_mean",
    seed: int = 0,
) -> Merge:
    """Cluster the unprotected tokens into N - r clusters by Lloyd's iteration (ToMe, table 2, "kmeans").

    Args:
        metric (`Tensor`): (B, N, D), what the clusters are made by.
        r (`int`): tokens to remove, cut so that one cluster is left.
        num_special (`int`): leading tokens that are in no cluster.
        iterations (`int`): of Lloyd's algorithm. It starts from random tokens, the same positions in every image and
            on every device; each stays in the cluster that it starts, so that none runs empty, and represents it.
        size (`Tensor`, *optional*): must be `None`: this baseline takes no padding.
        combine (`str`): the ablation of ToMe's table 1d.
        seed (`int`): for the tokens to start from.

    Raises:
        ValueError: a negative `r`, a metric of the wrong shape, or padded input.
    """
    check_arguments(metric, num_special, r)
    if iterations < 1:
        raise ValueError(f"`iterations` is {iterations}; it takes an integer of at least 1.")
    if size is not None:
        raise ValueError("The k-means baseline takes no padded input; use another method, or images of one size.")
    batch_size, num_tokens, _ = metric.shape
    r = min(r, max(num_tokens - num_special - 1, 0))
    if r == 0:
        return identity_merge(batch_size, num_tokens, metric.device)
    with torch.no_grad():
        rest, bias = sound(metric[:, num_special:])
        order = pseudo_random(rest.shape[1], seed, rest.device).argsort(stable=True)
        start, others = order[:-r].sort().values, order[-r:].sort().values
        own, joining = rest[:, start], rest[:, others]
        # Broken tokens draw no others to them, and do not move their centroids.
        weight = (bias == 0).to(rest.dtype)[..., None]
        own_weight, joining_weight = weight[:, start], weight[:, others]
        centroids = own
        for _ in range(iterations):
            cluster = (torch.cdist(joining, centroids) - bias[:, None, start]).argmin(dim=2, keepdim=True)  # (B, r, 1)
            total = own.scatter_add(1, cluster.expand_as(joining), joining)
            count = own_weight.scatter_add(1, cluster, joining_weight)
            centroids = total / count.clamp(min=1)
        merged = (others + num_special).expand(batch_size, -1)
        partner = start[cluster[..., 0]] + num_special
        rows = torch.arange(num_tokens, device=metric.device).expand(batch_size, -1)
        return pair_merge(merged, partner, rows, num_special, combine)

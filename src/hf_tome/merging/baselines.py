"""What ToMe's table 2 compares with: random and attention pruning, k-means, greedy matching."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import HardMerge, Merge, check_metric, identity_merge, pseudo_random
from .similarity import clean, lookup


def prune_lowest(score: Tensor, r: int, num_special: int = 0, *, size: Tensor | None = None) -> Merge:
    """Drop the `r` tokens of the lowest score, e.g. the attention they receive (ToMe, table 2, "attn-based").

    Args:
        score (`Tensor`): (B, N).
        r (`int`): tokens to drop, cut to the unprotected ones.
        num_special (`int`): leading tokens that are never dropped.
        size (`Tensor`, *optional*): (B, N, 1); padding (size 0) is dropped after every real token, and comes out last.
    """
    batch_size, num_tokens = score.shape
    r = min(r, num_tokens - num_special)
    if r <= 0:
        return identity_merge(batch_size, num_tokens, score.device)
    score = torch.nan_to_num(score.detach().float())
    score[:, :num_special] = torch.inf
    if size is not None:
        score = score.masked_fill(size[..., 0] == 0, torch.finfo(score.dtype).max)
    kept = score.argsort(dim=1, stable=True)[:, r:].sort(dim=1).values
    if size is not None:
        order = (size[..., 0].gather(1, kept) == 0).int().argsort(dim=1, stable=True)
        kept = kept.gather(1, order)
    none = kept.new_empty((batch_size, 0))
    return HardMerge(kept, none, none, num_tokens)


def prune_random(
    batch_size: int, num_tokens: int, r: int, num_special: int, device: torch.device, *, seed: int = 0, **kwargs
) -> Merge:
    """Drop `r` random tokens, the same positions in every image and on every device (ToMe, table 2, "random")."""
    score = torch.cat(
        [torch.zeros(num_special, device=device), pseudo_random(num_tokens - num_special, seed, device).float()]
    )
    return prune_lowest(score.expand(batch_size, -1), r, num_special, **kwargs)


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

    Sequential in `r`; every step looks at all N x N pairs. `metric` is (B, N, D).
    """
    check_metric(metric, num_special)
    batch_size, num_tokens, _ = metric.shape
    r = min(r, (num_tokens - num_special) // 2)
    if r == 0:
        return identity_merge(batch_size, num_tokens, metric.device)
    with torch.no_grad():
        rest = clean(metric[:, num_special:])
        pairs = lookup(distance)(rest, rest)
        lower = torch.ones_like(pairs[0], dtype=torch.bool).tril()
        pairs = pairs.masked_fill(lower, -torch.inf)
        if size is not None:
            # Finite, so that padding is still used up where real pairs run out.
            padding = size[:, num_special:, 0] == 0
            pairs = pairs.masked_fill((padding[:, :, None] | padding[:, None, :]) & ~lower, torch.finfo(pairs.dtype).min)
        used = torch.zeros_like(rest[..., 0], dtype=torch.bool)
        first, second = [], []
        for _ in range(r):
            available = pairs.masked_fill(used[:, :, None] | used[:, None, :], -torch.inf)
            best = available.flatten(1).argmax(dim=1)  # (B,), a number in rows x columns
            first.append(best // rest.shape[1])
            second.append(best % rest.shape[1])
            used = used.scatter(1, torch.stack([first[-1], second[-1]], dim=1), True)
        merged = torch.stack(second, dim=1) + num_special  # (B, r)
        partner = torch.stack(first, dim=1) + num_special
    return _merge_into(merged, partner, num_tokens, combine, size)


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

    Starts from `seed`ed tokens, the same on every device; `metric` is (B, N, D). A cluster is represented by its first member;
    clusters that end empty keep the token they started from, so that exactly N - r tokens come out.
    """
    check_metric(metric, num_special)
    if size is not None:
        raise ValueError("The k-means baseline takes no padded input; use another method, or images of one size.")
    batch_size, num_tokens, _ = metric.shape
    num_clusters = max(num_tokens - num_special - r, 1)
    if r <= 0 or num_tokens - num_special <= 1:
        return identity_merge(batch_size, num_tokens, metric.device)
    with torch.no_grad():
        rest = clean(metric[:, num_special:])
        start = torch.argsort(pseudo_random(rest.shape[1], seed, rest.device), stable=True)[:num_clusters].sort().values
        centroids = rest[:, start]
        for _ in range(iterations):
            cluster = torch.cdist(rest, centroids).argmin(dim=2)
            # The starting token anchors its cluster: no cluster can run empty.
            cluster = cluster.index_copy(1, start, torch.arange(num_clusters, device=rest.device).expand(batch_size, -1))
            index = cluster[..., None].expand_as(rest)
            total = torch.zeros_like(centroids).scatter_add(1, index, rest)
            count = torch.zeros_like(centroids[..., :1]).scatter_add(1, cluster[..., None], torch.ones_like(rest[..., :1]))
            centroids = total / count
        is_start = torch.zeros(rest.shape[1], dtype=torch.bool, device=rest.device).index_fill(0, start, True)
        others = (~is_start).nonzero()[:, 0]
        merged = (others + num_special).expand(batch_size, -1)
        partner = start[cluster[:, others]] + num_special
    return _merge_into(merged, partner, num_tokens, combine)


def _merge_into(
    merged: Tensor, partner: Tensor, num_tokens: int, combine: str, size: Tensor | None = None
) -> HardMerge:
    """Build the merge of tokens `merged` (B, R) into the tokens `partner` (B, R), the rest in ascending position."""
    batch_size = merged.shape[0]
    gone = torch.zeros((batch_size, num_tokens), dtype=torch.bool, device=merged.device).scatter(1, merged, True)
    order = gone.int().argsort(dim=1, stable=True)[:, : num_tokens - merged.shape[1]]
    if size is not None:
        order = order.gather(1, (size[..., 0].gather(1, order) == 0).int().argsort(dim=1, stable=True))
    outputs = torch.arange(order.shape[1], device=order.device).expand(batch_size, -1)
    row_of = order.new_zeros((batch_size, num_tokens)).scatter(1, order, outputs)
    return HardMerge(order, merged, row_of.gather(1, partner), num_tokens, combine)

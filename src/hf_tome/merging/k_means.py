"""k-means: clusters of tokens by Lloyd's iteration (ToMe, table 2, "kmeans")."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Merge, check_arguments, identity_merge, pair_merge
from .method import Fields, MatchInputs, Method
from .partition import pseudo_random
from .similarity import sound


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


def _match(inputs: MatchInputs) -> Merge:
    return kmeans(
        inputs.metric,
        inputs.r,
        inputs.num_prefix_tokens,
        iterations=inputs.fields["kmeans_iterations"],
        size=inputs.size,
        combine=inputs.fields["combine"],
        seed=inputs.seed,
    )


def _compared_pairs(before: float, after: float, num_prefix_tokens: int, fields: Fields) -> float:
    return (before - num_prefix_tokens) * (after - num_prefix_tokens) * fields["kmeans_iterations"]


METHOD = Method(
    "kmeans",
    _match,
    fields=("r", "kmeans_iterations", "combine", "seed"),
    compared_pairs=_compared_pairs,
    label="k-means",
)

"""Greedy matching: the most similar pair of all, again and again (ToMe, table 2, "greedy matching")."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Merge, check_arguments, identity_merge, pair_merge
from .method import Fields, MatchInputs, Method
from .similarity import similarity


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
            used = used.scatter(1, torch.stack([first[-1], second[-1]], dim=1), 1)
        merged = torch.stack(second, dim=1) + num_special  # (B, r)
        partner = torch.stack(first, dim=1) + num_special
        rows = torch.arange(num_tokens, device=metric.device).expand(batch_size, -1)
        return pair_merge(merged, partner, rows, num_special, combine, padding)


def _match(inputs: MatchInputs) -> Merge:
    return greedy_matching(
        inputs.metric,
        inputs.r,
        inputs.num_prefix_tokens,
        size=inputs.size,
        distance=inputs.fields["distance"],
        combine=inputs.fields["combine"],
    )


def _compared_pairs(before: float, after: float, num_prefix_tokens: int, fields: Fields) -> float:
    return (before - num_prefix_tokens) ** 2


METHOD = Method(
    "greedy",
    _match,
    fields=("r", "distance", "combine"),
    compared_pairs=_compared_pairs,
    label="greedy matching",
    colour="#56b4e9",
)

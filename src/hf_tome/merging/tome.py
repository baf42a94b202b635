"""ToMe: bipartite soft matching (Bolya et al., ICLR 2023, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import HardMerge, Merge, check_metric, identity_merge
from .partition import split
from .similarity import clean, lookup


def bipartite_soft_matching(
    metric: Tensor,
    r: int,
    class_token: bool = False,
    distill_token: bool = False,
    *,
    num_special: int | None = None,
    size: Tensor | None = None,
    distance: str = "cosine",
    partition: str = "alternating",
    combine: str = "weighted_mean",
    seed: int = 0,
) -> Merge:
    """Match the `r` most similar pairs of tokens between the even and the odd positions (ToMe, section 3).

    Each token of set A (even positions of the whole sequence) has one edge, to its most similar token of set B; the `r`
    strongest edges merge. Special tokens are never merged and stay first. Scores are computed in float32 or better.

    Args:
        metric (`Tensor`): (B, N, D), what similarity is measured on, usually the attention's keys averaged over heads.
        r (`int`): tokens to remove, cut to (N - special tokens) // 2.
        class_token (`bool`): token 0 is protected.
        distill_token (`bool`): one more leading token is protected.
        num_special (`int`, *optional*): the number of leading protected tokens, instead of the two flags.
        size (`Tensor`, *optional*): (B, N, 1), where 0 marks padding. Padding takes no part, and comes out last, so that
            an image's result does not depend on how far it is padded.
        distance, partition, combine (`str`): the ablations of ToMe's table 1.
        seed (`int`): for `partition="random"`.

    Returns:
        `Merge`: N -> N - r tokens: special, unmerged A in ascending position, B. (Without a class token the authors
        order the unmerged tokens by falling similarity, where rounding may swap rows; here position decides.)

    Raises:
        ValueError: a negative `r`, or a metric of the wrong shape.
    """
    if num_special is None:
        num_special = int(class_token) + int(distill_token)
    check_metric(metric, num_special)
    if r < 0:
        raise ValueError(f"`r` is {r}; it takes an integer of at least 0.")
    batch_size, num_tokens, _ = metric.shape
    r = min(r, (num_tokens - num_special) // 2)
    if r == 0:
        return identity_merge(batch_size, num_tokens, metric.device)

    a, b = split(num_tokens, num_special, partition, metric.device, seed=seed)
    with torch.no_grad():
        metric = clean(metric)
        scores = lookup(distance)(metric[:, a], metric[:, b])  # (B, |A|, |B|)
        scores = _without_padding(scores, size, a, b)
        strength, partner = scores.max(dim=-1)  # (B, |A|)
        order = strength.argsort(dim=-1, descending=True, stable=True)
        merged, unmerged = order[:, :r], order[:, r:].sort(dim=-1).values

        special = torch.arange(num_special, device=metric.device).expand(batch_size, -1)
        kept = torch.cat([special, a[unmerged], b.expand(batch_size, -1)], dim=1)  # (B, N - r)
        into = partner.gather(1, merged) + num_special + unmerged.shape[1]
        if size is not None:
            kept, into = _padding_last(kept, into, size)
    return HardMerge(kept, a[merged], into, num_tokens, combine)


def _without_padding(scores: Tensor, size: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    if size is None:
        return scores
    # Edges of padding come after every real one, so they are used only where real edges have run out.
    padding = size[..., 0] == 0  # (B, N)
    lowest = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(padding[:, None, b], lowest / 2)
    scores = scores.masked_fill(padding[:, a, None], lowest)
    # A real token whose only partners are padding must still be kept in preference to padding.
    nowhere = (scores <= lowest / 2) & ~padding[:, a, None]
    return scores.masked_fill(nowhere, -torch.inf)


def _padding_last(kept: Tensor, into: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding behind the real tokens, so that the next block splits the real ones as if they were alone."""
    is_padding = size[..., 0].gather(1, kept) == 0
    order = is_padding.int().argsort(dim=1, stable=True)
    return kept.gather(1, order), order.argsort(dim=1).gather(1, into)

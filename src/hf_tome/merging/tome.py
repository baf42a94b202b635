"""ToMe: bipartite soft matching (Bolya et al., ICLR 2023, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import HardMerge, Merge, check_arguments, identity_merge, pair_merge
from .indexing import take
from .method import Fields, GridInputs, MatchInputs, Method, two_halves
from .partition import alternating, sources_beside, split
from .similarity import best_matches, is_large, similarity
from .tiles import tiled_matching


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
    importance: Tensor | None = None,
    causal: bool = False,
    destinations: Tensor | None = None,
) -> Merge:
    """Match the `r` most similar pairs of tokens between the even and the odd positions (ToMe, section 3).

    Each token of set A (even positions of the whole sequence) has one edge, to its most similar token of set B; the
    `r` strongest edges merge. Special tokens are never merged and stay first. Scores are computed in float32 or
    better; a token that holds a NaN or an infinity merges only where `r` leaves no choice.

    Args:
        metric (`Tensor`): (B, N, D), what similarity is measured on, usually the attention's keys averaged over heads.
        r (`int`): tokens to remove, cut to (N - special tokens) // 2.
        class_token (`bool`): token 0 is protected.
        distill_token (`bool`): one more leading token is protected.
        num_special (`int`, *optional*): the number of leading protected tokens, instead of the two flags.
        size (`Tensor`, *optional*): (B, N, 1), where 0 marks padding, at the end of an image. Padding takes no part,
            and comes out last, so that an image's result does not depend on how far it is padded.
        distance, partition, combine (`str`): the ablations of ToMe's table 1.
        seed (`int`): for `partition="random"`.
        importance (`Tensor`, *optional*): (B, N), at least 0. The distance of a pair is multiplied by 1 and the
            importance of both of its tokens, so that important tokens merge where they are most alike, and late.
        causal (`bool`): tokens merge into later ones alone.
        destinations (`Tensor`, *optional*): (B, T), ascending, set B itself; all other tokens are set A, of which up
            to all merge. There are no special tokens and no padding then.

    Returns:
        `Merge`: N -> N - r tokens: special, unmerged A in ascending position, B. (Without a class token the authors
        order the unmerged tokens by falling similarity, where rounding may swap rows; here position decides.)

    Raises:
        ValueError: a negative `r`, an unknown name, tensors of the wrong shape, or `importance` with the distance
            `"dot"`, which knows no highest score.
    """
    if num_special is None:
        num_special = int(class_token) + int(distill_token)
    check_arguments(metric, num_special, r, size)
    batch_size, num_tokens, _ = metric.shape
    padding = None if size is None else size[..., 0] == 0  # (B, N)
    if destinations is None:
        a, b = split(num_tokens, num_special, partition, metric.device, seed=seed, padding=padding)
        r = min(r, (num_tokens - num_special) // 2)
    else:
        a, b = sources_beside(destinations, num_tokens), destinations
        r = min(r, a.shape[1])
    if r == 0:
        return identity_merge(batch_size, num_tokens, metric.device, padding)

    with torch.no_grad():
        if importance is None and is_large(a.shape[-1], b.shape[-1]):
            best, partner = best_matches(metric, a, b, distance, padding, causal=causal)
            order = best.argsort(dim=-1, descending=True, stable=True)
            partner = partner.gather(1, order[:, :r])
        else:
            # (B, |A|, |B|), (B, |A|)
            is_alternating = partition == "alternating" and destinations is None
            sources, others = alternating(num_tokens, num_special) if is_alternating else (a, b)
            scores, bias = similarity(metric, sources, others, distance, padding, importance=importance)
            if causal:
                scores = scores.masked_fill(a[..., :, None] > b[..., None, :], -torch.inf)
            order = (scores.amax(dim=-1) + bias).argsort(dim=-1, descending=True, stable=True)
            # Partners of the merged tokens alone: finding a maximum's place costs a CPU ten times finding the maximum.
            partner = take(scores, order[:, :r]).argmax(dim=-1)  # (B, r)
        merged, unmerged = order[:, :r], order[:, r:].sort(dim=-1).values
        a, b = a.expand(batch_size, -1), b.expand(batch_size, -1)
        special = torch.arange(num_special, device=metric.device).expand(batch_size, -1)
        merged = a.gather(1, merged)
        if padding is None:
            kept = torch.cat([special, a.gather(1, unmerged), b], dim=1)  # (B, N - r)
            return HardMerge(kept, merged, partner + num_special + unmerged.shape[1], num_tokens, combine)
        rows = torch.cat([special, a, b], dim=1)
        return pair_merge(merged, b.gather(1, partner), rows, num_special, combine, padding)


def _match(inputs: MatchInputs) -> Merge:
    fields, attended = inputs.fields, inputs.attended
    return bipartite_soft_matching(
        inputs.metric,
        inputs.r,
        num_special=inputs.num_prefix_tokens,
        size=inputs.size,
        distance=fields["distance"],
        partition=fields["partition"],
        combine=fields["combine"],
        seed=inputs.seed,
        importance=None if attended is None else fields["protect_attended"] * attended,
        causal=inputs.causal,
        destinations=inputs.destinations,
    )


def _compared_pairs(before: float, after: float, num_prefix_tokens: int, fields: Fields) -> float:
    return two_halves(before)  # prefix tokens take part in the alternation, and so in the product


def _match_grid(inputs: GridInputs) -> Merge:
    return tiled_matching(
        inputs.metric,
        inputs.r,
        inputs.shape,
        tile=inputs.tile,
        stride=inputs.stride,
        seed=inputs.seed,
        combine=inputs.fields["combine"],
    )


METHOD = Method(
    "tome",
    _match,
    match_grid=_match_grid,
    fields=("r", "distance", "combine", "partition", "protect_attended", "seed"),
    bipartite=True,
    compared_pairs=_compared_pairs,
    label="ToMe",
    colour="#0072b2",
)

"""Attention pruning: drop the tokens that receive the least attention (ToMe, table 2, "attn-based")."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import HardMerge, Merge, check_arguments, check_floating, identity_merge, move_back
from ..method import MatchInputs, Method


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


def _match(inputs: MatchInputs) -> Merge:
    return prune_lowest(inputs.metric, inputs.r, inputs.num_prefix_tokens, size=inputs.size)


METHOD = Method(
    "attention_prune",
    _match,
    fields=("r",),
    metric="received",
    proportional=False,
    drops_tokens=True,
    label="attention pruning",
    colour="#e69f00",
)

"""Where each input token went in the last forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..api import targets


@dataclass(frozen=True)
class Trace:
    """Where the tokens of one tower went.

    Attributes:
        source (`Tensor`): (B, N) int64, for each input token the final token that holds it; -1 if it was pruned or was
            padding. A MaMe source, which is shared out, counts to its heaviest destination.
        size (`Tensor`): (B, M, 1), how many input tokens each final token stands for; 0 for padding.
        num_prefix_tokens (`int`): leading tokens that are never merged.
        by_block (`tuple[Tensor, ...]`): (B, N) as `source`, after each block.
    """

    source: Tensor
    size: Tensor
    num_prefix_tokens: int
    by_block: tuple[Tensor, ...]


def trace(model: object, tower: int = 0) -> Trace:
    """Return where the tokens of the last forward pass went, for the `tower`-th merged tower of `model`.

    Raises:
        ValueError: the model was not applied with `MergeConfig(trace=True)`, or has not run since.
    """
    merge_targets = targets(model)
    if not merge_targets:
        raise ValueError(
            "No tokens are merged in this model; call `hf_tome.apply(model, MergeConfig(..., trace=True))`."
        )
    if not 0 <= tower < len(merge_targets):
        raise ValueError(f"`tower` is {tower}; the model has {len(merge_targets)} merged tower(s), counted from 0.")
    chosen = merge_targets[tower]
    if not chosen.config.trace:
        raise ValueError("The model was applied with trace=False; apply it again with `MergeConfig(..., trace=True)`.")
    summary = chosen.recorder.summary
    if summary is None:
        raise ValueError("The model has not run since `apply`; run it on some input first.")
    state = summary.state
    identity = torch.arange(state.tokens[0], device=state.device).expand(state.batch_size, -1)
    if state.size[0] is not None:
        identity = identity.masked_fill(state.size[0][..., 0] == 0, -1)  # padding from the start
    by_block = tuple(identity if source is None else source for source in state.source[1:])
    size = state.size[-1]
    if size is None:
        size = torch.ones((state.batch_size, state.tokens[-1], 1), device=state.device)
    return Trace(by_block[-1], size, chosen.describe().num_prefix_tokens, by_block)

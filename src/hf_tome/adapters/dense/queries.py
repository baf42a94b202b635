"""EoMT and VideoMT: plain towers, in front of whose tokens queries are put before the last blocks.

Behind them, EoMT's blocks go on merging, and the queries never merge. VideoMT runs its last blocks once for each frame
of a clip, with the queries that the frame before gives: its full grid is restored before they join.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...patching.patch import context_of, own_class
from ..encoders.attention import AttentionCall
from ..encoders.block import MergedBlock, attention_call, merge_in_block, unmerge
from ..encoders.carry import ForwardState
from ..encoders.families import sizes
from ..encoders.families.family import UNMERGE, Family, class_and_registers
from ..encoders.families.inputs import IMAGE
from ..encoders.families.registry import TOWERS
from ..encoders.packing import PADDED


class QueryBlock(MergedBlock):
    """A block of EoMT: behind the place where queries join, they are kept apart of what merges."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, *, merge_state: ForwardState, **kwargs: Any
    ) -> Tensor:
        """Take tokens (B, N, C), or queries and tokens (B, Q + N, C), to fewer; the last block gives all back."""
        context, state = context_of(self), merge_state
        index, plan, tower = context.index, context.target.plan, context.target.module
        first, num_queries = tower.config.num_hidden_layers - tower.config.num_blocks, tower.config.num_queries
        if index < first:
            hidden_states = super().forward(hidden_states, attention_mask, merge_state=state, **kwargs)
            if index == first - 1:
                state.layout[first] = PADDED
                hidden_states = _restored(state, first, hidden_states) if _reads_masks(tower) else hidden_states
            return hidden_states
        state.bring(index, hidden_states.device)
        if state.unmerged or not (state.merged[index] or plan.merging[index]):
            hidden_states = own_class(self).forward(self, hidden_states, attention_mask, **kwargs)
            state.leave(index, hidden_states[:, num_queries:], state.size[index], None, plan)
            return hidden_states
        call = _behind_queries(attention_call(context, state, None), num_queries)
        hidden_states = self._attend(hidden_states, None, call, kwargs)
        call.result, call.attended = _without(call.result, num_queries), _without(call.attended, num_queries)
        queries, tokens = hidden_states[:, :num_queries], hidden_states[:, num_queries:]
        tokens = merge_in_block(self, state, call, tokens)
        state.layout[index + 1] = PADDED
        hidden_states = self._feed_forward(torch.cat([queries, tokens], dim=1), PADDED)
        if index == plan.num_layers - 1:
            tokens = unmerge(state, hidden_states[:, num_queries:])
            hidden_states = torch.cat([hidden_states[:, :num_queries], tokens], dim=1)
        return hidden_states


def _reads_masks(tower: Any) -> bool:
    """Return whether masks are predicted between the last blocks, by every patch in its place, as in training."""
    return tower.training or bool((tower.attn_mask_probs > 0).any())


def _restored(state: ForwardState, index: int, tokens: Tensor) -> Tensor:
    """Give all tokens back before block `index`; the blocks from there on find nothing merged."""
    tokens = unmerge(state, tokens)
    for entries in (state.size, state.coherence, state.position, state.source):
        entries[index] = None
    state.tokens[index], state.merged[index], state.padded[index] = tokens.shape[1], False, False
    return tokens


def _behind_queries(call: AttentionCall, num_queries: int) -> AttentionCall:
    """Return a call of attention over queries and tokens, from that over tokens."""

    def in_front(values: Tensor | None, value: float) -> Tensor | None:
        return None if values is None else F.pad(values, (num_queries, 0), value=value)  # (B, N) -> (B, Q + N)

    return replace(
        call,
        bias=in_front(call.bias, 0),
        real=in_front(call.real, True),
        value_scale=in_front(call.value_scale, 1),
        position=None if call.position is None else in_front(call.position + num_queries, 0),
        num_prefix_tokens=call.num_prefix_tokens + num_queries,
        attending=None if call.attending is None else 0,  # the class token does not lead
    )


def _without(values: Tensor | None, num_queries: int) -> Tensor | None:
    """Cut the queries off what attention returns, (B, Q + N), (B, Q + N, C) or (B, H, Q + N, d)."""
    if values is None:
        return None
    return values[:, :, num_queries:] if values.ndim == 4 else values[:, num_queries:]


def before_queries(owner: Any, num_blocks: int) -> tuple[int, ...]:
    """The blocks that queries run through read every patch in its place, as do the masks behind them."""
    return (num_blocks - owner.config.num_blocks,)


LATE_QUERIES = (
    replace(
        UNMERGE,
        description=(
            "queries join before the last blocks and never merge (they are not counted here); the full grid is "
            "restored after the last block, or before they join where masks are read between the blocks"
        ),
    ),
)
QUERIES_OF_FRAMES = (
    replace(
        UNMERGE,
        description="the full grid is restored before the queries join, and the blocks behind run as ever",
        reads=before_queries,
        reads_field="num_blocks",
    ),
)

EOMT = replace(
    TOWERS["Dinov2Model"],
    model_types=("eomt",),
    tower="EomtForUniversalSegmentation",
    sizes=sizes.DINOV2_TOWER,
    num_prefix_tokens=class_and_registers,
    heads={"EomtForUniversalSegmentation": LATE_QUERIES},
    layers="layers",
    out="out_proj",
    scaling="scale",
    dropout="dropout",
    block_mixin=QueryBlock,
)

QUERY_FAMILIES: tuple[Family, ...] = (
    EOMT,
    replace(
        TOWERS["DINOv3ViTModel"],
        model_types=("eomt_dinov3",),
        tower="EomtDinov3ForUniversalSegmentation",
        num_prefix_tokens=class_and_registers,
        heads={"EomtDinov3ForUniversalSegmentation": LATE_QUERIES},
        layers="layers",
        block_mixin=QueryBlock,
    ),
    replace(
        EOMT,
        model_types=("videomt",),
        tower="VideomtForUniversalSegmentation",
        heads={"VideomtForUniversalSegmentation": QUERIES_OF_FRAMES},
        inputs=replace(IMAGE, shape=None),  # (B, frames, channels, height, width), of which every frame is an image
        block_mixin=None,
    ),
)

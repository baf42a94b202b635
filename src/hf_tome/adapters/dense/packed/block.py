"""The block forward of packed towers: norm, attention, residual, merge in each segment, norm, MLP, residual."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....patching.patch import PatchedModel, PatchedModule, context_of
from ....patching.plans import Target
from ...encoders.attention import log_size
from ...encoders.block import check_layers, running_pass
from ...encoders.matching import aggregated_heads, match_tokens, wanted_feature
from .attention import PackedCall, SegmentCall
from .segments import PackedMerge, Segments
from .state import PackedState

if TYPE_CHECKING:
    from .plan import PackedPlan

NOT_PASSED_ON = ("cu_seqlens", "max_seqlen", "attention_mask", "position_embeddings")
"""Arguments of a block that have the lengths of unmerged tokens."""


class PackedBlock(PatchedModule):
    """A pre-norm block of packed tokens that merges them between attention and MLP."""

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block in this forward pass, whose state travels as an argument (see `PackedState`)."""
        context = context_of(self)
        target, index = context.target, context.index
        if index == 0 and not target.plan.family.windows:
            begin_pass(target)
        state: PackedState = running_pass(target, index)
        state.next_block = index + 1
        hidden_states = nn.Module.__call__(self, hidden_states, *args, merge_state=state, **kwargs)
        if index == target.plan.num_layers - 1:
            recorder = target.recorder
            recorder.end(state.summary(target.config.trace), state if recorder.is_read else None)
        return hidden_states

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        cu_seqlens: Tensor,
        merge_state: PackedState,
        **kwargs: Any,
    ) -> Tensor:
        """Take tokens (S, C) or (1, S, C) to (M, C) or (1, M, C); the last block may give all of them back."""
        context = context_of(self)
        plan: PackedPlan = context.target.plan
        index, family, state = context.index, plan.family, merge_state
        if index == 0:
            state.enter(hidden_states, cu_seqlens)
        segments = state.attention_segments(index, cu_seqlens)
        if not state.merged[index] and not plan.merging[index]:
            state.pass_on(index)
            return super().forward(hidden_states, *args, cu_seqlens=cu_seqlens, **kwargs)
        x = hidden_states.view(-1, hidden_states.shape[-1])  # (1, S, C) -> (S, C)
        call = _call(plan, state, index, segments)
        if call.feature == "x_pre":
            call.result = x
        options = {name: value for name, value in kwargs.items() if name not in NOT_PASSED_ON}
        tables = _tables_of(state, index, kwargs.get("position_embeddings"))
        normed = attrgetter(family.norm1)(self)(x)
        attended = attrgetter(family.attention)(self)(normed, position_embeddings=tables, merge_call=call, **options)
        attended = attended[0] if family.gives_weights else attended
        x = x + _scaled(self, family.scale1, attended)
        if plan.merging[index]:
            x = merge_tokens(plan, state, index, call, x)
        else:
            state.pass_on(index)
        fed_forward = attrgetter(family.mlp)(self)(attrgetter(family.norm2)(self)(x))
        x = x + _scaled(self, family.scale2, fed_forward)
        if index == plan.num_layers - 1 and plan.unmerge:
            x = state.unmerge(index + 1, x)
        return x.view(*hidden_states.shape[:-2], *x.shape)  # (S, C) -> (1, S, C)


class WindowedTower(PatchedModel):
    """A tower, some of whose blocks attend in windows: it says where images, or frames, end."""

    methods = ("forward",)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the tower on patches (S, values) and `grid_thw` (K, 3), as ever."""
        from transformers.vision_utils import get_vision_cu_seqlens

        bounds = kwargs.get("cu_seqlens")
        if bounds is None:
            bounds = get_vision_cu_seqlens(kwargs["grid_thw"] if "grid_thw" in kwargs else args[1])
        begin_pass(context_of(self).target, bounds)
        return super().forward(*args, **kwargs)


class UnmergedInput(PatchedModule):
    """A module between the blocks that reads the tokens by place: it gets all of them."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module on tokens (M, C), unmerged to (S, C)."""
        state: PackedState | None = context_of(self).target.recorder.current()
        if state is not None:
            x = state.unmerge(state.next_block, x)
        return super().forward(x, *args, **kwargs)


def begin_pass(target: Target, image_bounds: Tensor | None = None) -> None:
    """Begin a forward pass through the blocks.

    Raises:
        RuntimeError: the blocks are not those that were planned for.
    """
    if not torch.compiler.is_compiling():  # a graph is compiled for the blocks that there are
        check_layers(target, PackedBlock)
    target.recorder.begin(PackedState(target.plan.num_layers, image_bounds, target.plan.group_size))


def _call(plan: PackedPlan, state: PackedState, index: int, segments: Segments) -> PackedCall:
    size = state.size[index]
    bias = None if size is None or not plan.proportional else log_size(size[None], True)[0]
    return PackedCall(
        segments=segments,
        bias=state.per_token(bias),
        feature=wanted_feature(plan, index),
        attending=plan.num_prefix_tokens if plan.merging[index] and plan.config.protect_attended else None,
        value_scale=state.per_token(state.coherence[index]),
        num_prefix_tokens=plan.num_prefix_tokens,
    )


def _tables_of(state: PackedState, index: int, tables: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    """Return the rows of rotary tables (S_0, d) at the places of the tokens that are left."""
    place = state.token_places(index)
    if tables is None or place is None:
        return tables
    cos, sin = (table.index_select(0, place) for table in tables)
    return cos, sin


def _scaled(block: nn.Module, name: str | None, x: Tensor) -> Tensor:
    return x if name is None else getattr(block, name) * x


def merge_tokens(plan: Any, state: PackedState, index: int, call: SegmentCall, x: Tensor) -> Tensor:
    """Merge the tokens (S, C) of one block, or their groups, and write down what the next one has to know."""
    config, prefix = plan.config, plan.num_prefix_tokens
    segments = state.merge_segments(index, config, plan.schedule[index], prefix)
    metric = state.rows(_metric(plan, call, x))
    match = _match(plan, state, segments, call.attended, metric, index)
    state.matching[index] = metric.shape[1] * sum(
        count * plan.method.compared_pairs(merge.num_input, merge.num_output, prefix, config.match_fields(plan.method))
        for (count, _), merge in zip(segments.shapes, match.merges)
    )
    rows, place = state.rows(x), state.place[index]
    place = torch.arange(len(rows), device=x.device) if place is None else place
    rows, size, place, coherence = match.merge(rows, state.size[index], place, state.coherence[index])
    state.leave(index, size, place, coherence, match)
    return state.tokens(rows)


def _metric(plan: Any, call: SegmentCall, x: Tensor) -> Tensor:
    """Return what similarity is measured on, (S, D)."""
    metric = x if call.result is None else call.result
    call.result = None  # it need not outlive the matching
    # (S, H, d) -> (1, H, S, d) -> (S, D)
    return metric if metric.ndim == 2 else aggregated_heads(plan.config, metric.transpose(0, 1)[None])[0]


def _match(
    plan: Any, state: PackedState, segments: Segments, attended: Tensor | None, metric: Tensor, index: int
) -> PackedMerge:
    """Match in all segments of one length at once, by a metric (S, D), given the attention paid to each token (S,)."""
    paid: list[Any] = [None] * len(segments.shapes)
    if attended is not None:
        paid = segments.split(attended.view(-1, state.group_size).mean(dim=1))  # (S,) -> (S / g,)
    fields = dict(plan.config.match_fields(plan.method))
    if "batching" in fields:
        fields["batching"] = "pad"  # there is no padding here, whatever numbers of tokens images keep
    batches = zip(segments.split(metric), segments.requested, paid)
    merges = [match_tokens(plan, index, part, r, fields, attended=of_part) for part, r, of_part in batches]
    return PackedMerge(segments, merges)

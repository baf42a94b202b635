"""The block forward of towers with windows: tokens stay merged in their windows, and the last block gives all back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....patching.patch import PatchedModel, PatchedModule, context_of
from ...encoders.attention import log_size
from ...encoders.block import check_layers, running_pass
from ..packed.block import merge_tokens
from .attention import WindowCall
from .grid import WindowGrid
from .state import WindowState

if TYPE_CHECKING:
    from .plan import WindowPlan


class WindowBlock(PatchedModule):
    """A pre-norm block of tokens on a grid, in windows or on all of it, that merges them within the windows."""

    window_size: int

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the block in this forward pass, whose state travels as an argument (see `WindowState`)."""
        context = context_of(self)
        target, index = context.target, context.index
        if index == 0:
            if not torch.compiler.is_compiling():  # a graph is compiled for the blocks that there are
                check_layers(target, WindowBlock)
            target.recorder.begin(WindowState(target.plan.num_layers))
        state: WindowState = running_pass(target, index)
        state.next_block = index + 1
        hidden_states = nn.Module.__call__(self, hidden_states, *args, merge_state=state, **kwargs)
        if index == target.plan.num_layers - 1:
            with_state = target.plan.family.reads_global
            target.recorder.end(state.summary(target.config.trace), state if with_state else None)
        return hidden_states

    def forward(self, hidden_states: Tensor, *args: Any, merge_state: WindowState, **kwargs: Any) -> Any:
        """Take tokens (B, H, W, C), or what is left of them, (M, C), to what is left; the last block to (B, H, W, C)."""
        context = context_of(self)
        plan: WindowPlan = context.target.plan
        index, family, state = context.index, plan.family, merge_state
        if index == 0:
            batch_size, height, width, _ = hidden_states.shape
            state.enter_grid(WindowGrid((batch_size, height, width), plan.window_size, hidden_states.device))
        call = _call(plan, state, index, self.window_size)
        if not state.merged[index] and not plan.merging[index]:
            state.pass_on(index)
            return super().forward(hidden_states, *args, **kwargs)
        x = hidden_states if state.merged[index] else state.grid.to_windows(hidden_states)
        if call.feature == "x_pre":
            call.feature, call.result = None, x
        if family.rotary is not None:
            kwargs["position_embeddings"] = self.rotary_emb(x, self.position_ids)
        normed = getattr(self, family.norm1)(x)
        attended, _ = getattr(self, family.attention)(normed, merge_call=call, **kwargs)
        x = x + attended
        if plan.merging[index]:
            x = merge_tokens(plan, state, index, call, x)
        else:
            state.pass_on(index)
        fed_forward = getattr(self, family.mlp)(getattr(self, family.norm2)(x))
        x = x + (fed_forward if family.dropout2 is None else getattr(self, family.dropout2)(fed_forward))
        return state.grid.to_grid(state.unmerge(index + 1, x)) if index == plan.num_layers - 1 else x


class GlobalReads(PatchedModel):
    """A tower that gives out what its global blocks do (SAM-HQ): these tokens are unmerged."""

    methods = ("forward",)
    reads_sizes = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the tower, with every place in its `intermediate_embeddings`, (B, H, W, C) each."""
        recorder, plan = context_of(self).target.recorder, context_of(self).target.plan
        as_tuple = kwargs.pop("return_dict", True) is False
        with recorder.reader():
            out = super().forward(*args, return_dict=True, **kwargs)
            state: WindowState | None = recorder.result()
        if state is not None and any(plan.merging):
            embeddings = zip(plan.global_blocks, out.intermediate_embeddings)
            out.intermediate_embeddings = [_on_grid(state, index + 1, tokens) for index, tokens in embeddings]
        return out.to_tuple() if as_tuple else out


def _on_grid(state: WindowState, index: int, tokens: Tensor) -> Tensor:
    return tokens if tokens.ndim == 4 else state.grid.to_grid(state.unmerge(index, tokens))


def _call(plan: WindowPlan, state: WindowState, index: int, window_size: int) -> WindowCall:
    grid, place, size = state.grid, state.place[index], state.size[index]
    segments, pads = state.segments_of(index, window_size > 0)
    rows, columns = (
        places if place is None else places.index_select(0, place) for places in (grid.rows, grid.columns)
    )
    sides = (grid.shape[1], grid.shape[2])
    if window_size > 0:
        rows, columns, sides = rows % window_size, columns % window_size, (window_size, window_size)
    matches = plan.merging[index]
    feature = (plan.method.metric or plan.config.choice("metric")) if matches else None
    return WindowCall(
        segments,
        bias=None if size is None or not plan.proportional else log_size(size[None], True)[0],
        feature=None if feature == "x" else feature,
        attending=0 if matches and plan.config.protect_attended else None,
        rows=rows,
        columns=columns,
        sides=sides,
        pads=pads,
    )

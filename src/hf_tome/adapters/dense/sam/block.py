"""The block forward of towers with windows: tokens stay merged in their windows, and the last block gives all back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....patching.patch import PatchedModel, PatchedModule, context_of
from ...encoders.block import check_layers, running_pass
from ...encoders.matching import wanted_feature
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
            is_read = target.plan.family.reads is not None and any(target.plan.merging)
            target.recorder.end(state.summary(target.config.trace), state if is_read else None)
        return hidden_states

    def forward(self, hidden_states: Tensor, *args: Any, merge_state: WindowState, **kwargs: Any) -> Any:
        """Take tokens on their grid, or what is left of them, (M, C), to what is left; the last block to the grid."""
        context = context_of(self)
        plan: WindowPlan = context.target.plan
        index, family, state = context.index, plan.family, merge_state
        if index == 0:
            batch_size, height, width, _ = _channels_last(plan, hidden_states).shape
            state.enter_grid(WindowGrid((batch_size, height, width), plan.window_size, hidden_states.device))
        call = _call(plan, state, index, self.window_size)
        if not state.merged[index] and not plan.merging[index]:
            state.pass_on(index)
            return super().forward(hidden_states, *args, **kwargs)
        x = hidden_states
        if not state.merged[index]:
            x = state.grid.to_windows(_channels_last(plan, hidden_states))
        if call.feature == "x_pre":
            call.result = x
        if family.rotary is not None:
            kwargs["position_embeddings"] = self.rotary_emb(x, self.position_ids)
        normed = getattr(self, family.norm1)(x)
        attended, _ = getattr(self, family.attention)(normed, merge_call=call, **kwargs)
        x = x + _through(self, family.dropout1, attended)
        if plan.merging[index]:
            x = merge_tokens(plan, state, index, call, x)
        else:
            state.pass_on(index)
        fed_forward = getattr(self, family.mlp)(getattr(self, family.norm2)(x))
        x = x + _through(self, family.dropout2, fed_forward)
        x = on_grid(plan, state, index + 1, x) if index == plan.num_layers - 1 else x
        return (x,) if family.gives_tuple else x


class HiddenStateReads(PatchedModule):
    """The module around the blocks of a backbone (ViTDet): hidden states come out on their grid, (B, C, H, W)."""

    reads_sizes = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the blocks, and unmerge the hidden states that the backbone may read, the embeddings apart."""
        recorder, plan = context_of(self).target.recorder, context_of(self).target.plan
        with recorder.reader():
            out = super().forward(*args, **kwargs)
            state: WindowState | None = recorder.result()
        hidden_states = getattr(out, "hidden_states", None)
        if state is not None and hidden_states is not None:
            out.hidden_states = tuple(on_grid(plan, state, index, x) for index, x in enumerate(hidden_states))
        return out


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
        if state is not None:
            embeddings = zip(plan.global_blocks, out.intermediate_embeddings)
            out.intermediate_embeddings = [on_grid(plan, state, index + 1, tokens) for index, tokens in embeddings]
        return out.to_tuple() if as_tuple else out


def on_grid(plan: WindowPlan, state: WindowState, index: int, tokens: Tensor) -> Tensor:
    """Return tokens going into block `index` on their grid, as the tower has it; those that are there stay."""
    if tokens.ndim == 4:
        return tokens
    grid = state.grid.to_grid(state.unmerge(index, tokens))
    return grid.permute(0, 3, 1, 2) if plan.family.channels_first else grid


def _channels_last(plan: WindowPlan, grid: Tensor) -> Tensor:
    """Return tokens on their grid as (B, H, W, C)."""
    return grid.permute(0, 2, 3, 1) if plan.family.channels_first else grid


def _through(block: nn.Module, name: str | None, x: Tensor) -> Tensor:
    return x if name is None else getattr(block, name)(x)


def _call(plan: WindowPlan, state: WindowState, index: int, window_size: int) -> WindowCall:
    layout = state.layout(index, window_size, plan.proportional)
    return WindowCall(
        feature=wanted_feature(plan, index),
        attending=0 if plan.merging[index] and plan.config.protect_attended else None,
        value_scale=state.coherence[index],
        layout=layout,
    )

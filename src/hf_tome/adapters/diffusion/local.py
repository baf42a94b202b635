"""The local mechanism: a denoiser's own block runs on merged tokens, and every token gets its change back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...merging import Merge
from ...patching.patch import PatchedModel, PatchedModule, context_of
from ...patching.recorder import PassSummary
from .bias import SizeBias, check_biased, with_mask
from .composition import check_arguments, check_caches, check_processors
from .matching import block_seed, match_grid, step_seed
from .rows import Call, Follow, Grid
from .state import BlockDetail, BlockShapes, KeyBias, without_data


class MergedDenoiser(PatchedModel):
    """A denoiser that tells its blocks the grid of its tokens and the seed of the step."""

    methods = ("forward",)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the denoiser on latents; the arguments are the model's own.

        Raises:
            ValueError: no block had tokens enough to merge.
        """
        context = context_of(self)
        plan, state, details = context.target.plan, context.detail.state, context.detail.details
        arguments = {**dict(zip(plan.names, args)), **kwargs}
        for detail in details:
            detail.tokens = detail.seen = None
        timestep = arguments.get(plan.row.timestep)
        check_arguments(arguments, plan.modules)
        if not plan.is_active(timestep):
            return super().forward(*args, **kwargs)
        state.grid = plan.row.grid(self, arguments)
        state.seed = step_seed(timestep, plan.config.seed, next(self.parameters()).device)
        try:
            out = super().forward(*args, **kwargs)
        finally:
            state.grid = state.seed = None
        plan.check_merged(self, details)
        if not torch.compiler.is_compiling():
            context.detail.inputs = without_data(arguments)
        context.target.recorder.end(PassSummary([0]))  # the blocks' details hold what `report` tells
        return out


class MergedBlock(PatchedModel):
    """A block, or a self-attention, that runs on the merged tokens of a grid."""

    methods = ("forward",)  # diffusers' caches look up arguments by the signature

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on merged tokens, where it has enough of them; the arguments are the module's own."""
        context = context_of(self)
        detail: BlockDetail = context.detail
        call = detail.call
        arguments = {**dict(zip(detail.names, args)), **kwargs}
        hidden, grid = arguments.get(call.hidden), detail.state.grid
        shape = None if grid is None else _shape_of(hidden, arguments, grid, detail)
        if shape is None or hidden is None or grid is None:
            return super().forward(*args, **kwargs)
        batch_size = hidden.shape[0]
        if batch_size == 1 or all(follow.has_batch for follow in call.follows):
            return self._run(arguments, hidden, grid, shape, detail)
        # A rotary table without a batch cannot follow the tokens of several images.
        check_caches(self, detail)
        images = [_image(arguments, batch_size, image) for image in range(batch_size)]
        outputs = [self._run(image, image[call.hidden], grid, shape, detail, batch_size) for image in images]
        return _concatenated(outputs)

    def _run(
        self,
        arguments: dict[str, Any],
        hidden: Tensor,
        grid: Grid,
        shape: tuple[int, ...],
        detail: BlockDetail,
        num_runs: int = 1,
    ) -> Any:
        call, config = detail.call, context_of(self).target.plan.config
        check_processors(self, detail)
        num_tokens = math.prod(shape)
        start = hidden.shape[1] - grid.stream if call.text_leads else 0
        # (B, N, C) -> what stands before the grid, the grid's tokens (B, S, C), what stands behind
        before, tokens, behind = hidden.split([start, num_tokens, hidden.shape[1] - start - num_tokens], dim=1)
        match = match_grid(config, tokens, shape, block_seed(detail.state.seed, detail.index))
        merged, size = match.merge(tokens)  # (B, M, C), (B, M, 1)
        detail.tokens = (num_tokens, match.num_output)
        inputs = torch.cat([before, merged, behind], dim=1) if hidden.shape[1] > num_tokens else merged
        if detail.kind == "kv":
            log_size = _log_size(size, inputs) if detail.proportional else None
            keys = {"encoder_hidden_states": inputs, "attention_mask": None}
            _keep_shapes(detail, arguments, {**arguments, **keys}, tokens, shape, match, num_runs)
            mask = None if log_size is None else KeyBias(log_size, 0, inputs.shape[1], False).over(inputs.shape[1])
            return super().forward(**{**arguments, **keys, "attention_mask": None if mask is None else mask[:, 0]})
        followed = {**arguments, call.hidden: inputs}
        for follow in call.follows:
            followed[follow.argument] = _followed(arguments.get(follow.argument), follow, hidden, start, match)
        _keep_shapes(detail, arguments, followed, tokens, shape, match, num_runs)
        bias = None
        if detail.proportional:
            bias = KeyBias(_log_size(size, inputs), start, inputs.shape[1], call.text_keys_first)
        out = self._call(followed, bias, detail)
        return _given_back(out, call, match, tokens, merged, start)

    def _call(self, arguments: dict[str, Any], bias: KeyBias | None, detail: BlockDetail) -> Any:
        """Run the module itself, its keys weighed by size."""
        if bias is None:
            return super().forward(**arguments)
        if detail.kind == "attention":
            if detail.call.bias == "mask":
                return super().forward(**with_mask(arguments, bias))
            mode = SizeBias(bias)
            with mode:
                out = super().forward(**arguments)
            check_biased(mode, self)
            return out
        detail.bias = bias
        try:
            return super().forward(**arguments)
        finally:
            detail.bias = None


class BiasedAttention(PatchedModule):
    """A self-attention inside a merged block: each key gets log(size) (ToMe, equation 1)."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attend; the arguments are the module's own."""
        detail: BlockDetail = context_of(self).detail.block
        if detail.bias is None:
            return super().forward(*args, **kwargs)
        if detail.call.bias == "mask":
            return super().forward(
                **with_mask({**dict(zip(context_of(self).detail.names, args)), **kwargs}, detail.bias)
            )
        mode = SizeBias(detail.bias)
        with mode:
            out = super().forward(*args, **kwargs)
        check_biased(mode, self)
        return out


def _shape_of(hidden: Any, arguments: Mapping[str, Any], grid: Grid, detail: BlockDetail) -> tuple[int, ...] | None:
    """Return the shape of the grid among the tokens of a block, or `None` where they do not merge."""
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        return None
    if detail.kind == "kv" and arguments.get("encoder_hidden_states") is not None:
        return None
    shape = grid.at(hidden.shape[1])
    if shape is None:
        return None
    num_tokens = math.prod(shape)
    detail.seen = (num_tokens, num_tokens)
    return shape if num_tokens >= detail.min_tokens else None


def _keep_shapes(
    detail: BlockDetail,
    arguments: dict[str, Any],
    merged: dict[str, Any],
    tokens: Tensor,
    shape: tuple[int, ...],
    match: Merge,
    num_runs: int,
) -> None:
    """Keep the shapes of a pass for `report`, unless they are those of the one before."""
    if torch.compiler.is_compiling():
        return
    new = (tuple(tokens.shape), shape, match.num_output, num_runs)
    old = detail.shapes
    if old is None or (old.grid_tokens, old.grid, old.num_left, old.num_runs) != new:
        detail.shapes = BlockShapes(without_data(arguments), without_data(merged), *new)


def _log_size(size: Tensor, like: Tensor) -> Tensor:
    return size[..., 0].log().to(like.dtype)  # (B, M, 1) -> (B, M)


def _followed(value: Any, follow: Follow, hidden: Tensor, start: int, match: Merge) -> Any:
    """Return an argument for the tokens that are left; a merged token keeps its destination's entry."""
    if isinstance(value, (tuple, list)):
        parts = [
            _followed(part, follow, hidden, start, match) if follow.part in (None, index) else part
            for index, part in enumerate(value)
        ]
        return type(value)(parts)
    if not isinstance(value, Tensor) or (follow.ndim is not None and value.ndim != follow.ndim):
        return value
    dim = follow.dim % value.ndim
    length = value.shape[dim]
    if length < hidden.shape[1]:  # broadcast over the tokens
        return value
    first = start + (length - hidden.shape[1] if follow.text_first else 0)
    before, tokens, behind = value.split([first, match.num_input, length - first - match.num_input], dim=dim)
    kept = match.representative  # (B, M)
    if not follow.has_batch:
        return torch.cat([before, tokens.index_select(dim, kept[0]), behind], dim=dim)
    # (B or 1, ..., S, ...) -> (B, ..., M, ...)
    batch_size = kept.shape[0]
    before, tokens, behind = (part.expand(batch_size, *part.shape[1:]) for part in (before, tokens, behind))
    index = kept.view(batch_size, *(kept.shape[1] if axis == dim else 1 for axis in range(1, value.ndim)))
    index = index.expand(*(kept.shape[1] if axis == dim else side for axis, side in enumerate(tokens.shape)))
    return torch.cat([before, tokens.gather(dim, index), behind], dim=dim)


def _given_back(out: Any, call: Call, match: Merge, tokens: Tensor, merged: Tensor, start: int) -> Any:
    """Return the output with as many tokens as the module was given."""
    place = call.output if isinstance(out, tuple) else None
    outputs = out if place is None else out[place]
    before, computed, behind = outputs.split(
        [start, match.num_output, outputs.shape[1] - start - match.num_output], dim=1
    )
    restored = match.unmerge(computed - merged if call.gives_change else computed)
    if call.gives_change:
        restored = restored.add_(tokens)  # what unmerging makes is a copy of its own
    if outputs.shape[1] > match.num_output:
        restored = torch.cat([before, restored, behind], dim=1)
    return restored if place is None else (*out[:place], restored, *out[place + 1 :])


def _image(value: Any, batch_size: int, image: int) -> Any:
    """Return one image's part of arguments: of each tensor whose first dimension is the batch."""
    if isinstance(value, Tensor):
        return value[image : image + 1] if value.ndim and value.shape[0] == batch_size else value
    if isinstance(value, Mapping):
        return {name: _image(part, batch_size, image) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_image(part, batch_size, image) for part in value)
    return value


def _concatenated(outputs: list[Any]) -> Any:
    if isinstance(outputs[0], tuple):
        return tuple(_concatenated(list(parts)) for parts in zip(*outputs))
    return None if outputs[0] is None else torch.cat(outputs, dim=0)

"""The one block forward that the rows drive: norm, attention, residual, merge, norm, MLP, residual."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_mask

from ...patching.patch import PatchedModule, context_of
from ...patching.plans import MergeContext, Target, patched_inside
from .attention import AttentionCall, backend_of, log_size
from .carry import ForwardState, stale
from .matching import aggregated_heads, match_tokens, merge_with_coherence, wanted_feature
from .packing import PaddedLayout, layout_of

if TYPE_CHECKING:
    from ...merging import Merge
    from .families.family import Family
    from .plan import EncoderPlan


class MergedBlock(PatchedModule):
    """A pre-norm block that merges tokens between attention and MLP (ToMe, figure 1; MaMe, equations 11 to 13)."""

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block in this forward pass, whose state travels as an argument (see `ForwardState`)."""
        context = context_of(self)
        target, index = context.target, context.index
        state = begin_pass(target) if index == 0 else running_pass(target, index)
        state.next_block = index + 1
        if index == target.plan.num_layers - 1:
            mask = args[0] if args else kwargs.get("attention_mask")
            is_masked = mask is not None and not state.merged[index]  # by then padding is in the sizes
            state.last_queries = None if is_masked else _last_queries(target.plan)
        hidden_states = nn.Module.__call__(self, hidden_states, *args, merge_state=state, **kwargs)
        if index == target.plan.num_layers - 1:
            end_pass(target, state)
        return hidden_states

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, *, merge_state: ForwardState, **kwargs: Any
    ) -> Tensor:
        """Take tokens (B, N, C) to (B, M, C); arguments are those of the block that this stands in for."""
        context = context_of(self)
        plan: EncoderPlan = context.target.plan
        index, family = context.index, plan.family
        merge_state.bring(index, hidden_states.device)
        if index == 0:
            is_padding_mask = attention_mask is not None and family.position_bias is None
            merge_state.enter(hidden_states, _sizes_of(attention_mask, hidden_states) if is_padding_mask else None)
        if not merge_state.is_needed(index):
            merge_state.leave(index, hidden_states, merge_state.size[index], None, plan)
            return hidden_states
        queries = merge_state.last_queries if index == plan.num_layers - 1 else None
        call = attention_call(context, merge_state, queries)
        if family.position_bias is not None:
            attention_mask = _position_bias(self, family.position_bias, attention_mask, merge_state, index, kwargs)
        elif merge_state.merged[index]:
            attention_mask = None  # it has the first block's length; padding is in the sizes by now

        hidden_states = self._attend(hidden_states, attention_mask, call, kwargs)
        if queries is None:
            hidden_states = merge_in_block(self, merge_state, call, hidden_states)
        else:
            merge_state.leave_last(index, _planned_tokens(plan, index, merge_state), plan)

        hidden_states = self._feed_forward(hidden_states, merge_state.layout[index + 1])
        if index == plan.num_layers - 1 and plan.unmerge:
            hidden_states = unmerge(merge_state, hidden_states)
        return hidden_states

    def _attend(
        self, hidden_states: Tensor, attention_mask: Any, call: AttentionCall, kwargs: dict[str, Any]
    ) -> Tensor:
        # In a method of its own, so that what it leaves behind is freed before the MLP, whose peak is the block's.
        family = context_of(self).target.plan.family
        if call.feature == "x_pre":
            call.result = hidden_states
        packed = call.layout.pack(hidden_states)
        attention = attrgetter(family.attention)(self)
        attended = attention(attrgetter(family.norm1)(self)(packed), attention_mask, merge_call=call, **kwargs)[0]
        attended = _steps(self, family.after_attention, attended)
        if call.num_queries is not None:
            return _add(family, hidden_states[:, : call.num_queries], attended)
        return call.layout.unpack(_add(family, packed, attended))

    def _feed_forward(self, hidden_states: Tensor, layout: PaddedLayout) -> Tensor:
        family = context_of(self).target.plan.family
        hidden_states = layout.pack(hidden_states)
        fed_forward = _steps(self, family.mlp, attrgetter(family.norm2)(self)(hidden_states))
        hidden_states = _add(family, hidden_states, fed_forward)
        if family.clamps_half and hidden_states.dtype == torch.float16:
            limit = torch.finfo(torch.float16).max - 1000
            hidden_states = hidden_states.clamp(min=-limit, max=limit)
        return layout.unpack(hidden_states)


def begin_pass(target: Target) -> ForwardState:
    """Begin a forward pass through the blocks.

    Raises:
        RuntimeError: the blocks are not those that were planned for.
    """
    if not torch.compiler.is_compiling():  # a graph is compiled for the blocks that there are
        check_layers(target)
    recorder = target.recorder
    state = ForwardState(target.plan.num_layers, recorder.scope("reads"))
    recorder.begin(state)
    return state


def end_pass(target: Target, state: ForwardState) -> None:
    """End the pass: what is kept is a summary, and what is read of the final tokens, if they are read."""
    plan, recorder = target.plan, target.recorder
    # Models around the tower read hidden states of several blocks; they are readers before the pass begins.
    with_state = bool(plan.reads) and (plan.unmerge_reads or recorder.is_read or torch.compiler.is_compiling())
    result = state.final(with_state) if plan.has_readers or recorder.is_read else None
    recorder.end(state.summary(plan.config.trace), result)


def _last_queries(plan: EncoderPlan) -> int | None:
    """Return how many leading tokens the last block computes in this pass, or `None` for all."""
    return None if plan.last_queries is None or asked_for("hidden_states", "attentions") else plan.last_queries


def asked_for(*outputs: str) -> bool:
    """Return whether transformers records one of these of each block in the pass that runs."""
    from transformers.utils.output_capturing import _active_collector  # no public name tells

    collected = _active_collector.get()
    return bool(collected) and any(name in collected for name in outputs)


def _planned_tokens(plan: EncoderPlan, index: int, state: ForwardState) -> int:
    """Return the tokens that come out of a block that need not merge, as the schedule has it."""
    num_tokens = state.tokens[index]
    if not plan.merging[index]:
        return num_tokens
    config, prefix = plan.config, plan.num_prefix_tokens
    r = config.tokens_to_merge(plan.schedule[index], num_tokens - prefix)
    planned = plan.method.planned_tokens(num_tokens, prefix, r, config.match_fields(plan.method))
    return num_tokens if planned is None else planned


def running_pass(target: Target, index: int) -> Any:
    """Return the state of the pass that runs, in which it is the turn of block `index`.

    Raises:
        RuntimeError: it is not.
    """
    state = target.recorder.current()
    if state is None:
        raise RuntimeError(
            f"Block {index} of a {target.plan.family.tower} ran before the first one; merging needs the blocks to run "
            "in order from block 0. Call `hf_tome.remove(model)` to run them one by one, or `hf_tome.apply` again if "
            "the model's layers have been changed."
        )
    if state.next_block != index:
        raise stale(target, f"block {index} ran where block {state.next_block} should")
    return state


def check_layers(target: Target, mixin: type = MergedBlock) -> None:
    """Raise a `RuntimeError` where the blocks are not those that were patched with `mixin`."""
    plan = target.plan
    layers = list(attrgetter(plan.family.layers)(target.module))
    if len(layers) != plan.num_blocks:
        raise stale(target, f"there are {len(layers)}, and there were {plan.num_blocks}")
    for index, entry in enumerate(layers[: plan.num_layers]):
        block = patched_inside(entry, mixin)
        if block is None or context_of(block).target is not target or context_of(block).index != index:
            raise stale(target, f"another one stands in the place of block {index}")


def _sizes_of(attention_mask: Any, hidden_states: Tensor) -> Tensor | None:
    """Return sizes (B, N, 1) that are 0 where a padding mask, in any backend's form, leaves a token out, if it does.

    Raises:
        ValueError: the mask is no padding mask, so that sizes cannot stand in for it.
    """
    batch_size, num_tokens = hidden_states.shape[:2]
    if isinstance(attention_mask, BlockMask):
        # transformers makes one for flex attention whether or not there is padding.
        attention_mask = create_mask(attention_mask.mask_mod, batch_size, 1, 1, num_tokens, hidden_states.device)
        if not torch.compiler.is_compiling() and bool(attention_mask.all()):
            return None
    if attention_mask.ndim == 4 and attention_mask.shape[1] == 1:
        first = attention_mask[:, :, :1]
        if torch.compiler.is_compiling() or bool((attention_mask == first).all()):
            attention_mask = first[:, 0, 0]  # (B, 1, N or 1, N) -> (B, N): padding is the same for every query
    if attention_mask.ndim != 2 or attention_mask.shape[-1] != num_tokens:
        raise ValueError(
            f"Merging takes a padding mask, one entry per token; got an attention mask of shape "
            f"{tuple(attention_mask.shape)} for {num_tokens} tokens."
        )
    if attention_mask.is_floating_point():
        attention_mask = attention_mask == 0  # additive: 0 attends
    real = attention_mask.expand(batch_size, -1).to(torch.bool)
    return real[..., None].to(torch.float32)


def attention_call(context: MergeContext, state: ForwardState, queries: int | None) -> AttentionCall:
    """Return what a block asks of its attention; `queries` is how many leading tokens attend, `None` for all."""
    plan, index = context.target.plan, context.index
    size, layout, bias, real = state.size[index], state.layout[index], None, None
    matches = plan.merging[index] and queries is None
    feature = wanted_feature(plan, index) if matches else None
    attending = plan.num_class_tokens if matches and plan.config.protect_attended else None
    # Where every image attends by itself there is no padding.
    is_padded = state.padded[index] and not (
        layout.per_image and queries is None and attending is None and feature != "received"
    )
    # Until a merge has happened the model's own mask is right, and the bits are the model's own.
    if size is not None and state.merged[index] and (plan.proportional or is_padded):
        bias = log_size(size, plan.proportional)
    if size is not None and is_padded:
        real = size[..., 0] > 0
    return AttentionCall(
        bias=bias,
        real=real,
        position=state.position[index],
        num_prefix_tokens=plan.num_prefix_tokens,
        feature=feature,
        attending=attending,
        num_queries=queries,
        value_scale=state.coherence[index],
        layout=layout,
    )


def merge_in_block(block: nn.Module, state: ForwardState, call: AttentionCall, hidden_states: Tensor) -> Tensor:
    """Merge the tokens of one block, and write down what the next one has to know."""
    context = context_of(block)
    plan, index = context.target.plan, context.index
    size, match = state.size[index], None
    if plan.merging[index]:
        match = _match(context, call, hidden_states, size if state.padded[index] else None)
        hidden_states, size, coherence = merge_with_coherence(match, hidden_states, size, state.coherence[index])
        state.coherence[index + 1] = coherence
    else:
        state.coherence[index + 1] = state.coherence[index]
    hidden_states = state.leave(index, hidden_states, size, match, plan)
    if match is None:
        state.layout[index + 1] = state.layout[index]
    else:
        family, padded = plan.family, state.padded[index + 1]
        has_mask = family.position_bias is not None
        backend = backend_of(attrgetter(family.attention)(block))
        state.layout[index + 1] = layout_of(size, padded, block, backend, has_mask)
    return hidden_states


def _match(context: MergeContext, call: AttentionCall, hidden_states: Tensor, size: Tensor | None) -> Merge:
    plan, index, config = context.target.plan, context.index, context.target.plan.config
    metric = hidden_states if call.result is None else call.result
    call.result = None  # it need not outlive the matching
    metric = aggregated_heads(config, metric)
    # No method takes more than half of what may merge, so that all of them are compared at equal tokens.
    r = config.tokens_to_merge(plan.schedule[index], metric.shape[1] - plan.num_prefix_tokens)
    return match_tokens(plan, index, metric, r, config.match_fields(plan.method), size, call.attended)


def _position_bias(
    block: nn.Module, name: str, attention_mask: Tensor | None, state: ForwardState, index: int, kwargs: dict[str, Any]
) -> Tensor | None:
    """Return the bias (B or 1, H, N, N) between the positions that the tokens keep (BEiT)."""
    interpolate, resolution = kwargs.pop("interpolate_pos_encoding", False), kwargs.pop("resolution", None)
    own = getattr(block, name, None)
    if own is not None:
        height, width = resolution
        window = (height // block.patch_size, width // block.patch_size)
        bias = own(window, interpolate, dim_size=state.tokens[0])
        attention_mask = bias if attention_mask is None else bias + attention_mask
    position = state.position[index]
    if attention_mask is None or position is None:
        return attention_mask
    # (B or 1, H, N0, N0) -> (B, H, N, N): rows, then columns, of the tokens that are left
    batch_size, num_tokens = position.shape
    _, num_heads, _, num_input = attention_mask.shape
    mask = attention_mask.expand(batch_size, -1, -1, -1)
    mask = mask.gather(2, position[:, None, :, None].expand(-1, num_heads, -1, num_input))
    return mask.gather(3, position[:, None, None, :].expand(-1, num_heads, num_tokens, -1))


def _steps(block: nn.Module, names: tuple[str, ...], hidden_states: Tensor) -> Tensor:
    for name in names:
        if name.endswith("()"):
            probability = attrgetter(name.removesuffix("()"))(block)
            hidden_states = nn.functional.dropout(hidden_states, p=probability, training=block.training)
            continue
        step = attrgetter(name)(block)
        if step is None:
            continue  # a scale that the model was built without
        hidden_states = step(hidden_states) if isinstance(step, nn.Module) else step * hidden_states
    return hidden_states


def _add(family: Family, residual: Tensor, computed: Tensor) -> Tensor:
    # The same bits either way, but in the memory layout of the first operand, on which the sums of later means depend.
    return residual + computed if family.residual_first else computed + residual


def unmerge(state: ForwardState, hidden_states: Tensor) -> Tensor:
    """Give every input token the token back that it was merged into, (B, M, C) -> (B, N, C)."""
    for index in reversed(range(state.num_layers)):
        match = state.match_for(index, hidden_states)
        if match is not None:
            hidden_states = match.unmerge(hidden_states)
    state.unmerged = True
    return hidden_states

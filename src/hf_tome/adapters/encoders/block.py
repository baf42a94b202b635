"""The one block forward that the rows drive: norm, attention, residual, merge, norm, MLP, residual."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_mask

from ...merging import MatchInputs
from ...patching.patch import LINK, Swapped
from ...patching.recorder import ForwardState, Link
from .attention import AttentionCall, backend_of, log_size
from .packing import packing_of

if TYPE_CHECKING:
    from ...merging import Merge
    from .family import Family


class MergedBlock(Swapped):
    """A pre-norm block that merges tokens between attention and MLP (ToMe, figure 1; MaMe, equations 11 to 13)."""

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block in this forward pass, whose state travels as an argument (see `ForwardState`)."""
        link: Link = getattr(self, LINK)
        state = link.tower.begin() if link.index == 0 else link.tower.current()
        return nn.Module.__call__(self, hidden_states, *args, merge_state=state, **kwargs)

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, *, merge_state: ForwardState, **kwargs: Any
    ) -> Tensor:
        """Take tokens (B, N, C) to (B, M, C); arguments are those of the block that this stands in for."""
        link: Link = getattr(self, LINK)
        tower, index, family = link.tower, link.index, link.tower.family
        merge_state.bring(index, hidden_states.device)
        if index == 0:
            is_padding_mask = attention_mask is not None and family.position_bias is None
            merge_state.enter(hidden_states, _sizes_of(attention_mask, hidden_states) if is_padding_mask else None)
        if not merge_state.is_needed(index):
            merge_state.leave(index, hidden_states, merge_state.size[index], None, tower)
            return hidden_states
        call = _attention_call(link, merge_state)
        if family.position_bias is not None:
            attention_mask = _position_bias(self, family.position_bias, attention_mask, merge_state, index, kwargs)
        elif merge_state.merged[index]:
            attention_mask = None  # it has the first block's length; padding is in the sizes by now

        hidden_states = self._attend(hidden_states, attention_mask, call, kwargs)
        hidden_states = _merge(self, merge_state, call, hidden_states)

        packing = merge_state.packing[index + 1]
        hidden_states = packing.pack(hidden_states)
        fed_forward = _steps(self, family.mlp, attrgetter(family.norm2)(self)(hidden_states))
        hidden_states = _add(family, hidden_states, fed_forward)
        hidden_states = packing.unpack(hidden_states)
        if index == tower.num_layers - 1 and tower.restore:
            hidden_states = _restore(merge_state, hidden_states)
        return hidden_states

    def _attend(
        self, hidden_states: Tensor, attention_mask: Any, call: AttentionCall, kwargs: dict[str, Any]
    ) -> Tensor:
        # In a method of its own, so that what it leaves behind is freed before the MLP, whose peak is the block's.
        family = getattr(self, LINK).tower.family
        if call.feature == "x_pre":
            call.result = hidden_states
        packed = call.packing.pack(hidden_states)
        attention = attrgetter(family.attention)(self)
        attended = attention(attrgetter(family.norm1)(self)(packed), attention_mask, merge_call=call, **kwargs)[0]
        return call.packing.unpack(_add(family, packed, _steps(self, family.after_attention, attended)))


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


def _attention_call(link: Link, state: ForwardState) -> AttentionCall:
    tower, index = link.tower, link.index
    size, bias = state.size[index], None
    # Until a merge has happened the model's own mask is right, and the bits are the model's own.
    if size is not None and state.merged[index] and (tower.proportional or state.padded[index]):
        bias = log_size(size, tower.proportional)
    return AttentionCall(
        bias=bias,
        real=size[..., 0] > 0 if size is not None and state.padded[index] else None,
        position=state.position[index],
        num_special=tower.num_special,
        feature=(tower.method.metric or tower.config.choice("metric")) if tower.merging[index] else None,
        packing=state.packing[index],
    )


def _merge(block: nn.Module, state: ForwardState, call: AttentionCall, hidden_states: Tensor) -> Tensor:
    """Merge the tokens of one block, and write down what the next one has to know."""
    link: Link = getattr(block, LINK)
    tower, index = link.tower, link.index
    size, match = state.size[index], None
    if tower.merging[index]:
        match = _match(link, call, hidden_states, size if state.padded[index] else None)
        hidden_states, size = match.merge(hidden_states, size)
    state.leave(index, hidden_states, size, match, tower)
    if match is None:
        state.packing[index + 1] = state.packing[index]
    else:
        family, padded = tower.family, state.padded[index + 1]
        has_mask = family.position_bias is not None
        backend = backend_of(attrgetter(family.attention)(block))
        state.packing[index + 1] = packing_of(size, padded, block, backend, has_mask)
    return hidden_states


def _match(link: Link, call: AttentionCall, hidden_states: Tensor, size: Tensor | None) -> Merge:
    tower, index, config = link.tower, link.index, link.tower.config
    metric = hidden_states if call.result is None else call.result
    call.result = None  # it need not outlive the matching
    if metric.ndim == 4:
        mean = config.choice("head_aggregation") == "mean"
        # (B, H, N, d) -> (B, N, d) or (B, N, H*d)
        metric = metric.mean(dim=1) if mean else metric.transpose(1, 2).flatten(2)
    # No method takes more than half of what may merge, so that all of them are compared at equal tokens.
    r = config.tokens_to_merge(tower.schedule[index], metric.shape[1] - tower.num_special)
    inputs = MatchInputs(
        metric=metric,
        r=r,
        num_prefix_tokens=tower.num_special,
        size=size,
        seed=config.seed * tower.num_layers + index,
        layer=index,
        num_layers=tower.num_layers,
        fields=config.match_fields(tower.method),
    )
    return tower.method.match(inputs)


def _position_bias(
    block: nn.Module, name: str, attention_mask: Tensor | None, state: ForwardState, index: int, kwargs: dict[str, Any]
) -> Tensor | None:
    """Return the bias (B or 1, H, N, N) between the positions that the tokens keep (BEiT)."""
    interpolate, resolution = kwargs.pop("interpolate_pos_encoding", False), kwargs.pop("resolution", None)
    own = getattr(block, name)
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
        step = attrgetter(name)(block)
        hidden_states = step(hidden_states) if isinstance(step, nn.Module) else step * hidden_states
    return hidden_states


def _add(family: Family, residual: Tensor, computed: Tensor) -> Tensor:
    # The same bits either way, but in the memory layout of the first operand, on which the sums of later means depend.
    return residual + computed if family.residual_first else computed + residual


def _restore(state: ForwardState, hidden_states: Tensor) -> Tensor:
    for match in reversed(state.match):
        if match is not None:
            hidden_states = match.to(hidden_states.device).unmerge(hidden_states)
    state.restored = True
    return hidden_states

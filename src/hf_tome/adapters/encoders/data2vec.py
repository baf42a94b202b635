"""Data2VecVision: BEiT's blocks, whose attention is written out and adds the biases of relative positions itself."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from ...patching.patch import PatchedModule
from .attention import Attend, AttentionCall, MergedAttention
from .block import MergedBlock
from .carry import ForwardState


class Data2VecBlock(MergedBlock):
    """A block that gives a tuple, and is called with the bias that all blocks share."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        *,
        merge_state: ForwardState,
        output_attentions: bool = False,
        relative_position_bias: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Take tokens (B, N, C) to (B, M, C), and to attention weights (B, H, N, N) where they are asked for."""
        bias, attention = relative_position_bias, self.attention.attention
        if attention.has_relative_position_bias and resolution is not None:
            height, width = (length // attention.config.patch_size for length in resolution)
            own = attention.relative_position_bias(
                (height, width), interpolate_pos_encoding, dim_size=height * width + 1
            )
            bias = own if bias is None else own + bias
        attentions: list[Tensor | None] = []
        hidden_states = super().forward(hidden_states, bias, merge_state=merge_state, attentions=attentions, **kwargs)
        return (hidden_states, *attentions) if output_attentions else (hidden_states,)


class Data2VecAttention(MergedAttention):
    """The attention inside, without its biases, which come as the mask."""

    @property
    def scaling(self) -> float:
        """By which logits are multiplied."""
        return 1 / math.sqrt(self.attention_head_size)

    @property
    def attention_dropout(self) -> float:
        """The probability with which weights are dropped."""
        return self.dropout.p

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        *,
        merge_call: AttentionCall | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over `hidden_states` (B, N, C), and append the weights to the list `attentions`."""
        attentions: list[Tensor | None] = kwargs.pop("attentions")
        out, weights = super().forward(hidden_states, attention_mask, merge_call=merge_call, **kwargs)
        attentions.append(weights)
        return out, weights

    def attention_function(self, backend: str) -> Attend:
        """See the base class."""
        if backend == "eager":
            return _attend
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        return ALL_ATTENTION_FUNCTIONS[backend]


class SharedBias(PatchedModule):
    """The bias that all blocks share: the encoder makes it for as many tokens as go into a block."""

    def forward(
        self, window_size: tuple[int, int], interpolate_pos_encoding: bool = False, dim_size: int | None = None
    ) -> Tensor:
        """Return the bias (1, H, N, N) of all input tokens."""
        return super().forward(window_size, interpolate_pos_encoding, dim_size=window_size[0] * window_size[1] + 1)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Attend as the model does: (B, H, N, d) -> (B, N, H, d)."""
    logits = query @ key.transpose(-1, -2) / math.sqrt(module.attention_head_size)
    weights = (logits if mask is None else logits + mask).softmax(dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights

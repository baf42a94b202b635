"""Decoders that attend to a tower's tokens (`VisionEncoderDecoderModel`): their cross-attention leaves padding out.

Where MaMe leaves the images of a batch with unequal numbers of tokens, the shorter ones are padded, and the model
hands its decoder no mask. Generation repeats the tower's output for beams and passes it on by itself, so padding is
told by the tokens: it is all zeros, which no token is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...patching.patch import PatchedModule, context_of
from .families.family import OutputAdapter
from .outputs import SizeReader, final_tokens


class ZeroPadding(SizeReader):
    """The encoder, whose output has zeros for padding."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the encoder, and clear the padding among its tokens (B, M, C)."""
        out = super().forward(*args, **kwargs)
        final = final_tokens(self)
        size = final.size_on(out[0].device)
        if size is None or not final.padded:
            return out
        tokens = out[0].masked_fill(size == 0, 0)
        if isinstance(out, tuple):
            return tokens, *out[1:]
        out.last_hidden_state = tokens
        return out


class KeepPaddingZero(PatchedModule):
    """Encoder-decoder projection that keeps padding rows zero."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project tokens (B, M, C) to (B, M, D)."""
        return super().forward(hidden_states).masked_fill(_is_padding(hidden_states)[..., None], 0)


class MaskedMemory(PatchedModule):
    """The decoder, with a mask for the padding among the tokens that it attends to."""

    def forward(
        self,
        *args: Any,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Attend to tokens (B, M, C), but for those that are zeros."""
        merges = any(context_of(self).target.plan.merging)
        if merges and encoder_hidden_states is not None and encoder_attention_mask is None:
            padding = _is_padding(encoder_hidden_states)
            if torch.compiler.is_compiling() or bool(padding.any()):
                encoder_attention_mask = (~padding).long()
        return super().forward(
            *args,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            **kwargs,
        )


def _is_padding(hidden_states: Tensor) -> Tensor:
    return (hidden_states == 0).all(dim=-1)  # (B, M, C) -> (B, M)


ENCODER_MEMORY = (
    OutputAdapter(ZeroPadding, "encoder"),
    OutputAdapter(KeepPaddingZero, "enc_to_dec_proj"),
    OutputAdapter(MaskedMemory, "decoder"),
)
"""What `VisionEncoderDecoderModel` does with its encoder's tokens."""

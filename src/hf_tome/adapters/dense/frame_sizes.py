"""Whisper's decoder attends to merged frames: each gets log(size) in cross-attention (ToMe, equation 1).

Sizes leave the encoder with its output, as one more entry: `generate` repeats all of them for beams, and hands them to
every step. In the decoder they go on as an argument, so that layers that are run again by gradient checkpointing find
the same. They never go into the cache of keys and values, whose order of beams they do not depend on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...patching.patch import PatchedModel, PatchedModule, context_of
from ..encoders.attention import MASK_BACKENDS, backend_of, log_size
from ..encoders.carry import FinalTokens
from ..encoders.families.family import OutputAdapter
from ..encoders.outputs import SizeReader, final_size

SIZES = "frame_sizes"
"""The entry of the encoder's output, and the argument of the decoder's layers."""
LOST_SIZES = (
    "The decoder got {got} frames of {full} without their sizes, by which its attention weighs them. Pass "
    "`encoder_outputs` as the encoder gave them out, the whole object rather than its tensor, or call "
    "`hf_tome.apply` with `proportional_attention=False`, or `restore=True`."
)


class SizedFrames(SizeReader):
    """The encoder: its output has the sizes (B, M, 1) of its frames as well."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the encoder."""
        out = super().forward(*args, **kwargs)
        size = final_size(self, out[0].device)
        if size is not None and not isinstance(out, tuple):
            out[SIZES] = size
        return out


class SizedMemory(PatchedModel):
    """The model around encoder and decoder, where frames that it is given keep their sizes."""

    methods = ("forward",)
    reads_sizes = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; `encoder_outputs` is its fifth argument."""
        given = kwargs.get("encoder_outputs", args[4] if len(args) > 4 else None)
        recorder = context_of(self).target.recorder
        with recorder.reader():
            if given is not None:
                size = None if isinstance(given, (tuple, list, Tensor)) else given.get(SIZES)
                recorder.resume(FinalTokens(size, padded=False))
            return super().forward(*args, **kwargs)


class SizedDecoder(SizeReader):
    """The decoder, which hands log(size) to its layers."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attend to frames (B, M, C), which are `encoder_hidden_states`, the third argument.

        Raises:
            ValueError: frames have merged, and their sizes are not known.
        """
        frames: Tensor | None = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        if frames is None or not any(context_of(self).target.plan.merging):
            return super().forward(*args, **kwargs)
        size = final_size(self, frames.device)
        if size is None and frames.shape[1] < self.config.max_source_positions:
            raise ValueError(LOST_SIZES.format(got=frames.shape[1], full=self.config.max_source_positions))
        if size is not None:
            # (B, M, 1) -> (B, 1, 1, M)
            kwargs[SIZES] = log_size(size, proportional=True)[:, None, None].to(frames.dtype)
        return super().forward(*args, **kwargs)


class SizedCrossAttention(PatchedModule):
    """Cross-attention of one layer of the decoder."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attend with log(size) (B, 1, 1, M) added to the logits.

        Raises:
            ValueError: the attention implementation takes no mask.
        """
        bias: Tensor | None = kwargs.pop(SIZES, None)
        if bias is not None:
            if not torch.compiler.is_compiling() and backend_of(self) not in MASK_BACKENDS:
                raise ValueError(
                    f"The attention implementation {backend_of(self)!r} takes no sizes of frames in cross-attention. "
                    "Call `hf_tome.apply` again after `set_attn_implementation`."
                )
            kwargs["attention_mask"] = bias
        return super().forward(hidden_states, *args, **kwargs)


def weighed_memory(num_layers: int, description: str) -> tuple[OutputAdapter, ...]:
    """Return the rows of a `WhisperModel` whose decoder has `num_layers` layers."""
    layers = range(num_layers)
    return (
        OutputAdapter(SizedMemory, description=description),
        OutputAdapter(SizedFrames, "encoder"),
        OutputAdapter(SizedDecoder, "decoder"),
        *(OutputAdapter(SizedCrossAttention, f"decoder.layers.{index}.encoder_attn") for index in layers),
    )

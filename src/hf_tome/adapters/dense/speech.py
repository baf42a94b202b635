"""Whisper's encoder: its decoder attends to however many frames are left, but for what tells the time by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...config import MergeConfig
from ...merging.methods import get_method
from ...patching.patch import PatchedModel, context_of
from ..encoders.families.family import TOKENS, UNMERGE, Family, OutputAdapter, zero
from ..encoders.families.inputs import InputFormat, TokenGrid
from ..encoders.families.sizes import Sizes, no_head
from ..encoders.outputs import mean_of
from ..encoders.rows.image_text import CLIP


class TimestampsOfWords(PatchedModel):
    """A Whisper model, whose word timestamps are read off the frames that its decoder attends to."""

    methods = ("generate",)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as ever.

        Raises:
            ValueError: timestamps of words are asked for, and frames have no place of their own any more.
        """
        plan = context_of(self).target.plan
        asked = kwargs.get("return_token_timestamps")
        if asked is None:
            generation_config: Any = kwargs.get("generation_config") or getattr(self, "generation_config", None)
            asked = getattr(generation_config, "return_token_timestamps", None)
        if asked and any(plan.merging) and not plan.unmerge:
            raise ValueError(
                "Timestamps of words are read off the frames that the decoder attends to, and merged frames have no "
                "place of their own. Call `hf_tome.apply` with `restore=True`, which unmerges them, or ask for "
                "timestamps of segments (`return_timestamps=True`), which the decoder writes."
            )
        return super().generate(*args, **kwargs)


def _spectrogram_shape(config: Any, image_size: int | None) -> tuple[int, ...]:
    return (config.num_mel_bins, 2 * config.max_source_positions)


def _frames(config: Any) -> tuple[int, int]:
    return config.max_source_positions, 3 * config.num_mel_bins


def _timeline(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    return TokenGrid(1, inputs["input_features"].shape[-1] // 2)  # the second convolution halves the steps


def _feed_forward(config: Any) -> int:
    return config.encoder_ffn_dim


SPEECH = InputFormat("audio", _spectrogram_shape, _frames, _timeline)
HEARS = OutputAdapter(description="the decoder attends to the merged frames (`restore=True` unmerges them)")
WORDS = OutputAdapter(TimestampsOfWords)

WHISPER = replace(
    CLIP,
    model_types=("whisper",),
    tower="WhisperEncoder",
    num_prefix_tokens=zero,
    heads={
        "WhisperEncoder": (TOKENS,),
        "WhisperModel": (HEARS,),
        "WhisperForConditionalGeneration": (WORDS,),
        "WhisperForAudioClassification": (mean_of("projector", averages_prefix=True),),
    },
    layers="layers",
    norm1="self_attn_layer_norm",
    after_attention=("dropout()",),
    norm2="final_layer_norm",
    mlp=("fc1", "activation_fn", "activation_dropout()", "fc2", "dropout()"),
    scaling="scaling",
    scales_query=True,
    clamps_half=True,
    inputs=SPEECH,
    sizes=Sizes(head=no_head, intermediate=_feed_forward),
)


def whisper_for(config: MergeConfig) -> Family:
    """Return Whisper's row for a config.

    The decoder takes no mask: where recordings of a batch may keep unequal numbers of frames, it gets all of them.
    """
    method = get_method(config.method)
    fields = config.match_fields(method)
    is_even = method.planned_tokens(2, 0, 1, fields) is not None or fields.get("batching") == "union"
    if is_even:
        return WHISPER
    return replace(WHISPER, heads={**WHISPER.heads, "WhisperModel": (UNMERGE,)})

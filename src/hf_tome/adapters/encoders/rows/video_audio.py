"""Encoders of video clips and of sound."""

from __future__ import annotations

from dataclasses import replace

from ..families.family import CLASS_TOKEN, PIXEL_DECODER, TOKENS, Family, first_patch_unless_mean, two, zero
from ..families.inputs import SPECTROGRAM, VIDEO
from ..outputs import mean_of
from .images import VIT

VIDEO_AUDIO: tuple[Family, ...] = (
    replace(
        VIT,
        model_types=("videomae",),
        tower="VideoMAEModel",
        protected=first_patch_unless_mean,
        inputs=VIDEO,
        num_prefix_tokens=zero,
        heads={
            "VideoMAEModel": (TOKENS,),
            "VideoMAEForVideoClassification": (mean_of("videomae.encoder", averages_prefix=True),),
            "VideoMAEForPreTraining": PIXEL_DECODER,
        },
        layers="encoder.layer",
        attention="attention.attention",
        after_attention=("attention.output.dense", "attention.output.dropout"),
        mlp=("intermediate", "output.dense", "output.dropout"),
        query="query",
        key="key",
        value="value",
        out=None,
        head_dim="attention_head_size",
        dropout="dropout_prob",
        proportional=False,
    ),
    replace(
        VIT,
        model_types=("vivit",),
        tower="VivitModel",
        inputs=VIDEO,
        heads={"VivitModel": (CLASS_TOKEN, TOKENS), "VivitForVideoClassification": (CLASS_TOKEN,)},
    ),
    replace(
        VIT,
        model_types=("audio-spectrogram-transformer",),
        tower="ASTModel",
        inputs=SPECTROGRAM,
        num_prefix_tokens=two,
        heads={"ASTModel": (CLASS_TOKEN, TOKENS), "ASTForAudioClassification": (CLASS_TOKEN,)},
        proportional=False,
    ),
)

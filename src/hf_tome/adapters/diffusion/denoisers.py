"""The supported denoisers of diffusers, one row each; a test permutes the tokens of every row (see `Follow`)."""

from __future__ import annotations

from dataclasses import replace

from . import grids
from .rows import BlockRow, Call, DenoiserRow, Follow

_MASK = Follow("attention_mask", -1)

BASIC = BlockRow(
    "BasicTransformerBlock",
    block=Call(follows=(_MASK,), attentions=("attn1",), bias="mask"),
    attention=Call(follows=(_MASK,), gives_change=False, bias="mask"),
    kv=True,
    unless={
        "pos_embed": "adds positions of its own to the sequence, which merging shortens",
        "only_cross_attention": "attends to text alone, so its own tokens need not be few",
    },
)
"""Blocks of UNets, DiT, PixArt and Latte: self-attention `attn1`, cross-attention, MLP, each with a residual."""

_JOINT = Call(output=1, attentions=("attn",), text_keys_first=True)
"""Two streams, image and text, that attend together."""


def _rotary(argument: str, *, text_first: bool = True) -> Follow:
    return Follow(argument, 0, text_first=text_first, has_batch=False)


FLUX = (
    BlockRow("FluxTransformerBlock", block=replace(_JOINT, follows=(_rotary("image_rotary_emb"),))),
    BlockRow("FluxSingleTransformerBlock", block=replace(_JOINT, follows=(_rotary("image_rotary_emb"),))),
)
_BATCHED_ROTARY = Follow("image_rotary_emb", 1)
_SD3 = (
    BlockRow(
        "JointTransformerBlock",
        block=replace(_JOINT, attentions=("attn", "attn2"), text_keys_first=False),
        attention=Call(output=0, gives_change=False),
        self_attentions=("attn", "attn2"),
    ),
    BlockRow("SD3SingleTransformerBlock", block=Call(attentions=("attn",))),
)
_QWEN = BlockRow(
    "QwenImageTransformerBlock",
    block=replace(
        _JOINT,
        follows=(replace(_rotary("image_rotary_emb", text_first=False), part=0), Follow("modulate_index", 1)),
    ),
)
_WAN = BlockRow(
    "WanTransformerBlock",
    block=Call(attentions=("attn1",), follows=(Follow("rotary_emb", 1), Follow("temb", 1, ndim=4))),
)


def _cog(name: str, *follows: Follow) -> tuple[BlockRow, ...]:
    """Return the row of a block as CogVideoX's, which gives out the image's tokens first."""
    return (BlockRow(name, block=replace(_JOINT, output=0, attentions=("attn1",), follows=follows)),)


def _as_flux(name: str, double: str, single: str) -> DenoiserRow:
    blocks = (replace(FLUX[0], name=double), replace(FLUX[1], name=single))
    return DenoiserRow(name, blocks, grids.packed_by_ids, timesteps=(1.0, 0.0))


DENOISERS: dict[str, DenoiserRow] = {
    row.name: row
    for row in (
        DenoiserRow("UNet2DConditionModel", (BASIC,), grids.unet),
        DenoiserRow("ControlNetModel", (BASIC,), grids.unet),
        DenoiserRow("ControlNetUnionModel", (BASIC,), grids.unet),
        DenoiserRow("DiTTransformer2DModel", (BASIC,), grids.patches),
        DenoiserRow("PixArtTransformer2DModel", (BASIC,), grids.patches),
        DenoiserRow("LatteTransformer3DModel", (BASIC,), grids.patches, path=r"transformer_blocks\.\d+"),
        DenoiserRow("SD3Transformer2DModel", _SD3, grids.patches),
        DenoiserRow("SD3ControlNetModel", _SD3, grids.patches),
        DenoiserRow("FluxTransformer2DModel", FLUX, grids.packed_by_ids, timesteps=(1.0, 0.0)),
        DenoiserRow("FluxControlNetModel", FLUX, grids.packed_by_ids, timesteps=(1.0, 0.0)),
        _as_flux("BriaTransformer2DModel", "BriaTransformerBlock", "BriaSingleTransformerBlock"),
        _as_flux("OvisImageTransformer2DModel", "OvisImageTransformerBlock", "OvisImageSingleTransformerBlock"),
        _as_flux(
            "LongCatImageTransformer2DModel", "LongCatImageTransformerBlock", "LongCatImageSingleTransformerBlock"
        ),
        DenoiserRow(
            "Flux2Transformer2DModel",
            (
                replace(FLUX[0], name="Flux2TransformerBlock"),
                BlockRow(
                    "Flux2SingleTransformerBlock",
                    block=Call(text_leads=True, attentions=("attn",), follows=(_rotary("image_rotary_emb"),)),
                ),
            ),
            grids.packed_by_ids,
            timesteps=(1.0, 0.0),
        ),
        DenoiserRow(
            "ChromaTransformer2DModel",
            (
                BlockRow(
                    "ChromaTransformerBlock",
                    block=replace(
                        _JOINT, follows=(_rotary("image_rotary_emb"), Follow("attention_mask", -1, text_first=True))
                    ),
                ),
                BlockRow(
                    "ChromaSingleTransformerBlock",
                    block=Call(text_leads=True, attentions=("attn",), follows=(_rotary("image_rotary_emb"), _MASK)),
                ),
            ),
            grids.packed_by_ids,
            timesteps=(1.0, 0.0),
        ),
        DenoiserRow("QwenImageTransformer2DModel", (_QWEN,), grids.packed_by_shapes, timesteps=(1.0, 0.0)),
        DenoiserRow("QwenImageControlNetModel", (_QWEN,), grids.packed_by_shapes, timesteps=(1.0, 0.0)),
        DenoiserRow(
            "ZImageTransformer2DModel",
            (
                BlockRow(
                    "ZImageTransformerBlock",
                    block=Call(
                        hidden="x",
                        attentions=("attention",),
                        follows=(Follow("freqs_cis", 1), Follow("attn_mask", -1), Follow("noise_mask", 1)),
                    ),
                ),
            ),
            grids.listed,
            path=r"layers\.\d+",
            timestep="t",
            timesteps=(0.0, 1.0),
        ),
        DenoiserRow(
            "Lumina2Transformer2DModel",
            (
                BlockRow(
                    "Lumina2TransformerBlock",
                    block=Call(text_leads=True, attentions=("attn",), follows=(_BATCHED_ROTARY, _MASK)),
                ),
            ),
            grids.patches,
            path=r"layers\.\d+",
        ),
        DenoiserRow(
            "AuraFlowTransformer2DModel",
            (
                BlockRow("AuraFlowJointTransformerBlock", block=_JOINT),
                BlockRow("AuraFlowSingleTransformerBlock", block=Call(text_leads=True, attentions=("attn",))),
            ),
            grids.patches,
        ),
        DenoiserRow(
            "CogVideoXTransformer3DModel",
            _cog("CogVideoXBlock", _rotary("image_rotary_emb", text_first=False)),
            grids.frames_first,
        ),
        DenoiserRow(
            "ConsisIDTransformer3DModel",
            _cog("ConsisIDBlock", _rotary("image_rotary_emb", text_first=False)),
            grids.frames_first,
        ),
        DenoiserRow("CogView3PlusTransformer2DModel", _cog("CogView3PlusTransformerBlock"), grids.patches),
        DenoiserRow(
            "CogView4Transformer2DModel",
            _cog("CogView4TransformerBlock", _rotary("image_rotary_emb", text_first=False)),
            grids.patches,
        ),
        DenoiserRow(
            "LTXVideoTransformer3DModel",
            (
                BlockRow(
                    "LTXVideoTransformerBlock",
                    block=Call(attentions=("attn1",), follows=(_BATCHED_ROTARY, Follow("temb", 1))),
                ),
            ),
            grids.packed_by_numbers,
        ),
        DenoiserRow("WanTransformer3DModel", (_WAN,), grids.video),
        DenoiserRow("ChronoEditTransformer3DModel", (_WAN,), grids.video),
        DenoiserRow(
            "HunyuanVideoTransformer3DModel",
            tuple(
                BlockRow(
                    name,
                    block=Call(
                        output=0,
                        attentions=("attn",),
                        follows=(_rotary(rotary, text_first=False), Follow("attention_mask", -1)),
                    ),
                )
                for name, rotary in (
                    ("HunyuanVideoTransformerBlock", "freqs_cis"),
                    ("HunyuanVideoSingleTransformerBlock", "image_rotary_emb"),
                )
            ),
            grids.video,
            path=r"(single_)?transformer_blocks\.\d+",
        ),
        DenoiserRow(
            "MochiTransformer3DModel",
            (
                BlockRow(
                    "MochiTransformerBlock",
                    block=Call(
                        output=0, attentions=("attn1",), follows=(_rotary("image_rotary_emb", text_first=False),)
                    ),
                ),
            ),
            grids.video,
        ),
        DenoiserRow(
            "HunyuanDiT2DModel",
            (
                BlockRow(
                    "HunyuanDiTBlock",
                    # The whole block adds a skip before its residuals, so its output is no change of its input.
                    attention=Call(gives_change=False, follows=(_rotary("image_rotary_emb", text_first=False),)),
                ),
            ),
            grids.patches,
        ),
    )
}

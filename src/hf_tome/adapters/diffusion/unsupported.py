"""Why tokens do not merge in the other denoisers of diffusers.

A reason completes "it is not supported, because ...". `docs/models.md` is generated from this table and the rows.
"""

from __future__ import annotations

from torch import nn

from .denoisers import DENOISERS

CHECKED = "0.42"
"""The version of diffusers whose every denoiser has a row or a reason."""

CONVOLUTIONS = "its attention is linear, and its blocks mix neighbouring tokens by convolution"
FEATURE_MAP = "its few attention blocks read the grid of a feature map, and convolutions take most of the time"
FRAMES = "its blocks attend over frames too, of which there are some 16"
SOUND = "it makes sound, whose tokens are no grid of an image"
PROTEINS = "it makes proteins, whose tokens are no grid of an image"
EMBEDDING = "it makes one embedding, of which there are too few tokens to merge"
ONE_SEQUENCE = "text and images run through it as one sequence, in any order"
HISTORY = "it makes a video part by part, and reads earlier parts from a cache or a packed history"
TWO_IN_ONE = "base and control run through each other's blocks"
NO_ROW = "no row has passed the permutation test for it yet"

BY_REASON: dict[str, str] = {
    CONVOLUTIONS: "SanaControlNetModel SanaTransformer2DModel SanaVideoTransformer3DModel SanaWMTransformer3DModel",
    FEATURE_MAP: "Kandinsky3UNet StableCascadeUNet UNet2DModel",
    FRAMES: (
        "I2VGenXLUNet SparseControlNetModel TransformerTemporalModel UNet3DConditionModel UNetMotionModel "
        "UNetSpatioTemporalConditionModel"
    ),
    SOUND: (
        "AceStepTransformer1DModel AudioLDM2UNet2DConditionModel LongCatAudioDiTTransformer "
        "MiniMaxMusic3Transformer1DModel StableAudio3DiTModel StableAudioDiTModel UNet1DModel"
    ),
    PROTEINS: "RFD4ProteinaTransformer",
    EMBEDDING: "PriorTransformer",
    ONE_SEQUENCE: "Cosmos3OmniTransformer OmniGenTransformer2DModel UniDiffuserModel",
    HISTORY: "AnyFlowFARTransformer3DModel HeliosTransformer3DModel HunyuanVideoFramepackTransformer3DModel",
    TWO_IN_ONE: "ControlNetXSAdapter UNetControlNetXSModel",
    NO_ROW: (
        "AllegroTransformer3DModel AnyFlowTransformer3DModel BriaFibo2Transformer2DModel BriaFiboTransformer2DModel "
        ""
        "CosmosControlNetModel CosmosTransformer3DModel DreamLiteTransformer2DModel DreamLiteUNetModel "
        "EasyAnimateTransformer3DModel "
        "ErnieImageTransformer2DModel Flux3Transformer2DModel GlmImageTransformer2DModel "
        "HiDreamImageTransformer2DModel HunyuanDiT2DControlNetModel HunyuanImageTransformer2DModel "
        "HunyuanVideo15Transformer3DModel Ideogram4Transformer2DModel JoyImageEditPlusTransformer3DModel "
        "JoyImageEditTransformer3DModel Kandinsky5Transformer3DModel Kandinsky6SRTransformer3DModel "
        "Kandinsky6Transformer3DModel Krea2Transformer2DModel LTX2VideoDiffusionDecoderModel "
        "LTX2VideoTransformer3DModel LuminaNextDiT2DModel MiniMaxH3Transformer3DModel "
        "MotifVideoTransformer3DModel NucleusMoEImageTransformer2DModel "
        "PRXTransformer2DModel QwenImage21Transformer2DModel "
        "SanaWMLTX2RefinerTransformer3DModel SkyReelsV2Transformer3DModel Transformer2DModel UVit2DModel "
        "WanAnimate2Transformer3DModel WanAnimateTransformer3DModel WanVACETransformer3DModel ZImageControlNetModel"
    ),
}
"""Reason -> class names of denoisers."""

UNSUPPORTED: dict[str, str] = {name: reason for reason, names in BY_REASON.items() for name in names.split()}
"""Class name of the denoiser -> reason."""


def reason_of(root: nn.Module) -> str:
    """Return why nothing can merge in a model of diffusers, what is supported and what to do."""
    names = [type(module).__name__ for module in root.modules()]
    class_name = next((name for name in names if name in UNSUPPORTED), names[0])
    reason = UNSUPPORTED.get(class_name, NO_ROW)
    return (
        f"Found no denoiser to merge tokens in: {class_name} is not supported, because {reason}. "
        f"Supported are {', '.join(sorted(DENOISERS))}."
    )

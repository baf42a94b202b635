"""The dense models around a tower: what each reads of it, by class name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..encoders.families.family import OutputAdapter
from .reads import UnmergedOutputs, UnmergedReads
from .towers import features_of

UNMERGED = "unmerges each hidden state that it reads, while later blocks keep merging"


def beit_indices(owner: Any, num_blocks: int) -> tuple[int, ...]:
    """BEiT's segmentation counts its hidden states from 1."""
    return tuple(index - 1 for index in owner.config.out_indices)


def clipseg_layers(owner: Any, num_blocks: int) -> tuple[int, ...]:
    """CLIPSeg names layers, whose outputs are one further."""
    return tuple(layer % num_blocks + 1 for layer in owner.extract_layers)


def depth_pro_layers(owner: Any, num_blocks: int) -> tuple[int, ...]:
    """Depth Pro names layers of its patch encoder, and reads the output of each of its encoders."""
    return (*(layer + 1 for layer in owner.config.intermediate_hook_ids), num_blocks)


def dpt_layers(owner: Any, num_blocks: int) -> tuple[int, ...]:
    """DPT names layers, the first two of which are those of a convolutional stem in its hybrid form."""
    if getattr(owner, "backbone", None) is not None:
        return ()  # the backbone has a row of its own
    chosen = owner.config.backbone_out_indices
    chosen = chosen[2:] if owner.config.is_hybrid else chosen
    return tuple(layer + 1 for layer in chosen if layer < num_blocks)


BACKBONE_HEAD: tuple[OutputAdapter, ...] = ()
"""Around a backbone, which unmerges by itself what it gives out."""
DEPTH_PRO = (OutputAdapter(description=UNMERGED, unmerge_reads=True, reads=depth_pro_layers),)

BEIT_SEGMENTATION = OutputAdapter(
    UnmergedReads, "beit", UNMERGED, unmerge_reads=True, reads=beit_indices, reads_field="out_indices"
)
DPT = (
    OutputAdapter(
        UnmergedReads, "dpt", UNMERGED, unmerge_reads=True, reads=dpt_layers, reads_field="backbone_out_indices"
    ),
)

DENSE_MODELS: dict[str, tuple[OutputAdapter, ...]] = {
    "BeitBackbone": (features_of("beit"),),
    "PixioBackbone": (features_of("pixio"),),
    "BeitForSemanticSegmentation": (BEIT_SEGMENTATION,),
    "Data2VecVisionForSemanticSegmentation": (
        replace(BEIT_SEGMENTATION, mixin=UnmergedOutputs, target="data2vec_vision"),
    ),
    "CLIPSegForImageSegmentation": (
        OutputAdapter(
            UnmergedReads,
            "clip.vision_model",
            UNMERGED,
            unmerge_reads=True,
            reads=clipseg_layers,
            reads_field="extract_layers",
        ),
    ),
    "DPTForDepthEstimation": DPT,
    "DPTForSemanticSegmentation": DPT,
    "DepthProModel": DEPTH_PRO,
    "DepthProForDepthEstimation": DEPTH_PRO,
    **dict.fromkeys(
        (
            "DepthAnythingForDepthEstimation",
            "PromptDepthAnythingForDepthEstimation",
            "ZoeDepthForDepthEstimation",
            "UperNetForSemanticSegmentation",
            "CHMv2ForDepthEstimation",
            "Tipsv2DptForDensePrediction",
            "Tipsv2DptForDepthEstimation",
            "Tipsv2DptForNormalEstimation",
            "Tipsv2DptForSemanticSegmentation",
            "Mask2FormerModel",
            "Mask2FormerForUniversalSegmentation",
            "MaskFormerModel",
            "MaskFormerForInstanceSegmentation",
            "VitPoseForPoseEstimation",
            "RfDetrModel",
            "RfDetrForObjectDetection",
            "RfDetrForInstanceSegmentation",
            "LwDetrModel",
            "LwDetrForObjectDetection",
        ),
        BACKBONE_HEAD,
    ),
}
"""The output adapters of models around a tower."""


def why_unfit(module: Any) -> str | None:
    """Return why a module of this build cannot take merged tokens, or `None`."""
    if type(module).__name__ == "VitPoseBackbone" and module.config.num_experts > 1:
        return "its blocks choose an expert for each picture, and hf_tome has no row for these yet"
    if type(module).__name__ == "WhisperForAudioClassification" and module.config.use_weighted_layer_sum:
        return "it sums the hidden states of all blocks (`use_weighted_layer_sum`), which have unequal lengths"
    return None


READ_WHOLE: dict[str, OutputAdapter] = {
    name: OutputAdapter(UnmergedReads, unmerge_reads=True) for name in ("DepthProModel", "DepthProForDepthEstimation")
}
"""What is patched on the tower itself in models that hold several of them."""

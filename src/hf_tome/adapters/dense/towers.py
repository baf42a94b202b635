"""The rows of backbones that own their blocks, and of other dense towers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..encoders.families import sizes
from ..encoders.families.family import (
    CLASS_TOKEN,
    TOKENS,
    UNMERGE,
    Family,
    OutputAdapter,
    class_and_registers,
    one,
    zero,
)
from ..encoders.families.registry import TOWERS
from ..encoders.rows.image_text import CLIP
from ..encoders.rows.images import VIT
from .queries import QUERY_FAMILIES
from .reads import UnmergedFeatures, out_indices
from .speech import WHISPER
from .windows import window_families

READS_FEATURES = OutputAdapter(
    UnmergedFeatures,
    "encoder",
    "unmerges each hidden state that it reads (`out_features`), while later blocks keep merging",
    unmerge_reads=True,
    reads=out_indices,
    reads_field="out_features",
)


def features_of(target: str) -> OutputAdapter:
    """Return the row of a backbone that reads the hidden states of the module at `target`."""
    return replace(READS_FEATURES, target=target)


def _backbone(model: str, backbone: str, target: str = "encoder") -> Family:
    """Return the row of a backbone from that of the model with the same blocks."""
    return replace(TOWERS[model], tower=backbone, heads={backbone: (features_of(target),)})


class VitPoseEncoder(UnmergedFeatures):
    """ViTPose's encoder, which hands its blocks the index of a data set where others have the mask."""

    def forward(self, hidden_states: Tensor, dataset_index: Tensor | None = None, **kwargs: Any) -> Any:
        """Run the blocks; only those with several experts read the index."""
        return super().forward(hidden_states, **kwargs)


OLDER_VIT = replace(
    VIT,
    layers="encoder.layer",
    attention="attention.attention",
    after_attention=("attention.output.dense", "attention.output.dropout"),
    query="query",
    key="key",
    value="value",
    out=None,
    head_dim="attention_head_size",
    dropout="dropout_prob",
)
"""Blocks whose projections and outputs stand in modules of their own."""


def _owl(prefix: str, model_type: str) -> Family:
    """Return the row of OWL-ViT's tower, whose detection reads the grid behind the last block."""
    tower = f"{prefix}VisionTransformer"
    return replace(
        CLIP,
        model_types=(f"{model_type}_vision_model", model_type),
        tower=tower,
        sizes=sizes.NO_HEAD,
        heads={
            tower: (CLASS_TOKEN, TOKENS),
            f"{prefix}VisionModel": (CLASS_TOKEN, TOKENS),
            f"{prefix}Model": (CLASS_TOKEN,),
            f"{prefix}ForObjectDetection": (UNMERGE,),
        },
    )


SAPIENS2 = replace(
    TOWERS["DINOv3ViTModel"],
    model_types=("sapiens2",),
    tower="Sapiens2Model",
    heads={
        "Sapiens2Model": (CLASS_TOKEN, TOKENS),
        **{
            f"Sapiens2For{task}": (UNMERGE,)
            for task in (
                *("SemanticSegmentation", "PoseEstimation", "NormalEstimation"),
                *("PointmapEstimation", "ImageMatting"),
            )
        },
    },
    num_prefix_tokens=class_and_registers,
    query_norm="q_norm",
    key_norm="k_norm",
    norm_heads=True,
)

DENSE_FAMILIES: tuple[Family, ...] = (
    _backbone("Dinov2Model", "Dinov2Backbone"),
    _backbone("Dinov2WithRegistersModel", "Dinov2WithRegistersBackbone"),
    _backbone("DINOv3ViTModel", "DINOv3ViTBackbone", target="model"),
    _backbone("Tipsv2VisionModel", "Tipsv2VisionBackbone"),
    replace(
        OLDER_VIT,
        model_types=("dpt",),
        tower="DPTModel",
        sizes=sizes.NO_HEAD,
        num_prefix_tokens=one,
        heads={"DPTModel": (CLASS_TOKEN, TOKENS)},
        mlp=("intermediate", "output.dense", "output.dropout"),
    ),
    _owl("OwlViT", "owlvit"),
    _owl("Owlv2", "owlv2"),
    replace(
        OLDER_VIT,
        model_types=("vitpose_backbone", "vitpose"),
        tower="VitPoseBackbone",
        sizes=sizes.RATIO_TOWER,
        num_prefix_tokens=zero,
        heads={"VitPoseBackbone": (replace(READS_FEATURES, mixin=VitPoseEncoder),)},
        mlp=("mlp",),
    ),
    SAPIENS2,
    *window_families(READS_FEATURES),
    replace(SAPIENS2, tower="Sapiens2Backbone", heads={"Sapiens2Backbone": (features_of("model"),)}),
    WHISPER,
    *QUERY_FAMILIES,
)

DENSE_TOWERS: dict[str, Family] = {family.tower: family for family in DENSE_FAMILIES}
"""The rows by the class name of the module that owns the blocks."""

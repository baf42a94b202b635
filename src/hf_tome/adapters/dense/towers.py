"""The rows of backbones that own their blocks, and of other dense towers."""

from __future__ import annotations

from dataclasses import replace

from ..encoders.families import TOWERS
from ..encoders.family import Family, OutputAdapter
from .reads import UnmergedFeatures, out_indices

READS_FEATURES = OutputAdapter(
    UnmergedFeatures,
    "encoder",
    "unmerges each hidden state that it reads (`out_features`), while the blocks go on merging",
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


DENSE_FAMILIES: tuple[Family, ...] = (
    _backbone("Dinov2Model", "Dinov2Backbone"),
    _backbone("Dinov2WithRegistersModel", "Dinov2WithRegistersBackbone"),
    _backbone("DINOv3ViTModel", "DINOv3ViTBackbone", target="model"),
    _backbone("Tipsv2VisionModel", "Tipsv2VisionBackbone"),
)

DENSE_TOWERS: dict[str, Family] = {family.tower: family for family in DENSE_FAMILIES}
"""The rows by the class name of the module that owns the blocks."""

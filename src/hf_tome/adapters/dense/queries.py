"""EoMT and VideoMT: plain towers, in front of whose tokens queries are put before the last blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..encoders.families import sizes
from ..encoders.families.family import UNMERGE, Family, class_and_registers
from ..encoders.families.inputs import IMAGE
from ..encoders.families.registry import TOWERS


def before_queries(owner: Any, num_blocks: int) -> tuple[int, ...]:
    """The blocks that queries run through read every patch in its place, as do the masks behind them."""
    return (num_blocks - owner.config.num_blocks,)


QUERIES = (
    replace(
        UNMERGE,
        description="the full grid is restored before the queries join, and the blocks behind run as ever",
        reads=before_queries,
        reads_field="num_blocks",
    ),
)

EOMT = replace(
    TOWERS["Dinov2Model"],
    model_types=("eomt",),
    tower="EomtForUniversalSegmentation",
    sizes=sizes.DINOV2_TOWER,
    num_prefix_tokens=class_and_registers,
    heads={"EomtForUniversalSegmentation": QUERIES},
    layers="layers",
    out="out_proj",
    scaling="scale",
    dropout="dropout",
)

QUERY_FAMILIES: tuple[Family, ...] = (
    EOMT,
    replace(
        TOWERS["DINOv3ViTModel"],
        model_types=("eomt_dinov3",),
        tower="EomtDinov3ForUniversalSegmentation",
        num_prefix_tokens=class_and_registers,
        heads={"EomtDinov3ForUniversalSegmentation": QUERIES},
        layers="layers",
    ),
    replace(
        EOMT,
        model_types=("videomt",),
        tower="VideomtForUniversalSegmentation",
        heads={"VideomtForUniversalSegmentation": QUERIES},
        inputs=replace(IMAGE, shape=None),  # (B, frames, channels, height, width), of which every frame is an image
    ),
)

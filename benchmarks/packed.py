"""Packed towers: merging within each image, with every token given back before the merger, against the slice oracle.

Towers of Qwen3-VL and Qwen2.5-VL with random weights, at half their width and a third of their blocks, one image,
float32, sdpa, one thread. The oracle cuts tokens to the same numbers, and fills the grid up with zeros before what
reads it (the patch merger, and the deepstack mergers of Qwen3-VL).

    python benchmarks/packed.py [--quick] [--out benchmarks/measured/packed.json]
"""

from __future__ import annotations

from typing import Any

import torch
from common import TOWER_COLUMNS, Row, run, time_tower, tower_row
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from hf_tome import MergeConfig

SIDE = 32
TOWERS: dict[str, tuple[Any, Any, int]] = {
    "Qwen3-VL": (
        Qwen3VLVisionModel,
        Qwen3VLVisionConfig(
            depth=9,
            hidden_size=576,
            intermediate_size=2152,
            num_heads=8,
            out_hidden_size=1024,
            deepstack_visual_indexes=[2, 5, 7],
        ),
        16,
    ),
    "Qwen2.5-VL": (
        Qwen2_5_VisionTransformerPretrainedModel,
        Qwen2_5_VLVisionConfig(
            depth=9,
            hidden_size=640,
            intermediate_size=1710,
            num_heads=8,
            out_hidden_size=1024,
            fullatt_block_indexes=[2, 5, 8],
        ),
        14,
    ),
}
"""Class, config and patch size."""
CONFIGS = (MergeConfig(ratio=0.5, layers=[1]), MergeConfig(r=57))
COLUMNS = {"model": "tower", **TOWER_COLUMNS}


def build(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a tower and the patches of one image."""
    torch.manual_seed(0)
    tower, config, patch = TOWERS[name]
    patches = torch.randn(SIDE * SIDE, 3 * 2 * patch * patch)
    return tower(config).eval(), {"hidden_states": patches, "grid_thw": torch.tensor([[1, SIDE, SIDE]])}


def measure(quick: bool) -> list[Row]:
    rows = []
    for name in list(TOWERS)[: 1 if quick else None]:
        model, inputs = build(name)
        for config in CONFIGS[: 1 if quick else None]:
            result = time_tower(model, inputs, config, 3 if quick else 9)
            rows.append({"model": name, **tower_row(config, result)})
    return rows


def reached(row: Row) -> bool:
    return row["oracle_share"].median >= 0.9


if __name__ == "__main__":
    run(__doc__, measure, COLUMNS, target="90 % of the slice oracle with half of the tokens", reached=reached)

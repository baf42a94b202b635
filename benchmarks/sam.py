"""SAM's image encoder: tokens merged in their windows up to the neck, against the slice oracle; and matching's cost.

SAM ViT-B with random weights at 1,024 pixels, and at a quarter of its width with 32 x 32 patches in windows of 7,
which is the ratio of 64 x 64 in windows of 14; 12 blocks, 4 of them global. One picture, float32, sdpa, one thread.
The oracle cuts tokens to the same numbers, and fills the grid up with zeros before the neck. "Matching" is what it
takes to compare tokens and to merge them, as a share of the merged encoder's time.

    python benchmarks/sam.py [--quick] [--out benchmarks/measured/sam.json]
"""

from __future__ import annotations

from typing import Any

import torch
from common import TOWER_COLUMNS, Row, run, time_tower, tower_row
from torch import Tensor, nn
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

import hf_tome.adapters.dense.sam.block as sam_block
from hf_tome import MergeConfig, apply, remove
from hf_tome.profiling.rounds import time_once

SIZES = {
    "ViT-B": {},
    "quarter": {
        **{"hidden_size": 192, "num_attention_heads": 3, "mlp_dim": 768, "output_channels": 64},
        **{"image_size": 512, "window_size": 7},
    },
}
"""What differs from the config of SAM ViT-B."""
CASES = (
    ("quarter", MergeConfig(ratio=0.4, layers=[0]), 9),
    ("quarter", MergeConfig(r=34), 9),
    ("ViT-B", MergeConfig(ratio=0.4, layers=[0]), 3),
)
COLUMNS = {"model": "encoder", **TOWER_COLUMNS, "matching": "matching"}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return an encoder, whose weights would be near zero as built, and a picture."""
    torch.manual_seed(0)
    config = SamVisionConfig(**SIZES[name])
    model = SamVisionEncoder(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(std=0.2)
            elif parameter.ndim >= 2:
                parameter.normal_(std=0.8 * parameter[0].numel() ** -0.5)
    return model, torch.randn(1, 3, config.image_size, config.image_size)


def matching_share(model: nn.Module, pixels: Tensor, config: MergeConfig) -> float:
    """Return the share of a merged pass that matching and merging take, the median of five."""
    merge_tokens, spent = sam_block.merge_tokens, []

    def timed(*args: Any) -> Tensor:
        merged: list[Tensor] = []
        spent.append(time_once(lambda: merged.append(merge_tokens(*args)), "process", pixels.device))
        return merged[0]

    shares = []
    apply(model, config)
    sam_block.merge_tokens = timed
    try:
        with torch.no_grad():
            for _ in range(6):
                spent.clear()
                seconds = time_once(lambda: model(pixels), "process", pixels.device)
                shares.append(sum(spent) / seconds)
    finally:
        sam_block.merge_tokens = merge_tokens
        remove(model)
    return sorted(shares[1:])[2]


def measure(quick: bool) -> list[Row]:
    rows = []
    for name, config, rounds in CASES[: 1 if quick else None]:
        model, pixels = build(name)
        result = time_tower(model, {"pixel_values": pixels}, config, 3 if quick else rounds)
        rows.append({"model": name, **tower_row(config, result), "matching": matching_share(model, pixels, config)})
    return rows


def reached(row: Row) -> bool:
    return row["speedup"].median >= 1.9 and row["matching"] <= 0.05


if __name__ == "__main__":
    target = "1.9 times as fast with 60 % of the tokens; matching at most 5 % of the time"
    run(__doc__, measure, COLUMNS, target=target, reached=reached)

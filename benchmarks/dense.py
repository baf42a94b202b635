"""Dense backbones: merging in the blocks with every read unmerged, against the slice oracle, and what unmerging costs.

DINOv2 backbones with random weights, four hidden states read, one picture, float32, sdpa, one thread. "Unmerging" is
what it takes to unmerge the four reads, as a share of the merged model's time. The oracle cuts
tokens to the same numbers, and fills its reads up with zeros. Heads behind the backbone are not in it: merging cannot
make these faster.

    python benchmarks/dense.py [--quick] [--out benchmarks/measured/dense.json]
"""

from __future__ import annotations

from statistics import median

import torch
from common import TOWER_COLUMNS, Row, run, time_tower, tower_row
from transformers import Dinov2Backbone, Dinov2Config

from hf_tome import MergeConfig, apply
from hf_tome.adapters.dense.reads import unmerge_each
from hf_tome.api import targets
from hf_tome.profiling.rounds import interleave

READS = (3, 6, 9, 12)
SMALL = {"hidden_size": 384, "num_attention_heads": 6}
CASES: tuple[tuple[str, dict, int, MergeConfig, int], ...] = (
    ("DINOv2-S", SMALL, 364, MergeConfig(r=28), 9),
    ("DINOv2-S", SMALL, 364, MergeConfig(r=48), 9),
    ("DINOv2-S", SMALL, 364, MergeConfig(r=338, layers=[4]), 9),
    ("DINOv2-B", {}, 518, MergeConfig(r=57), 3),
    ("DINOv2-B", {}, 518, MergeConfig(r=684, layers=[4]), 3),
)
COLUMNS = {"model": "backbone", "image_size": "pixels", **TOWER_COLUMNS, "unmerging": "unmerging four reads"}


def measure(quick: bool) -> list[Row]:
    rows = []
    for name, sizes, image_size, config, rounds in CASES[:1] if quick else CASES:
        torch.manual_seed(0)
        model = Dinov2Backbone(Dinov2Config(**sizes, image_size=image_size, out_indices=list(READS))).eval()
        pixels = torch.randn(1, 3, image_size, image_size)
        result = time_tower(model, {"pixel_values": pixels}, config, 3 if quick else rounds)
        share = unmerging(model, pixels, config) / result.seconds["merged"].median
        rows.append({"model": name, "image_size": image_size, **tower_row(config, result), "unmerging": share})
    return rows


def unmerging(model: Dinov2Backbone, pixels: torch.Tensor, config: MergeConfig) -> float:
    """Return the seconds that unmerging the reads of one pass takes."""
    apply(model, MergeConfig.from_dict({**config.to_dict(), "trace": True}))
    with torch.no_grad():
        model(pixels)
        summary = targets(model)[0].recorder.summary
        width = model.config.hidden_size
        entries = [(read, torch.randn(1, summary.tokens[read], width)) for read in READS]
        seconds = interleave({"unmerging": lambda: unmerge_each(summary.state, entries)}, 9, warmup=0)
    return median(seconds["unmerging"])


def reached(row: Row) -> bool:
    return row["oracle_share"].median >= 0.97 and row["unmerging"] < 0.01


if __name__ == "__main__":
    target = "97 % of the slice oracle; unmerging four reads below 1 % of the time"
    run(__doc__, measure, COLUMNS, target=target, reached=reached)

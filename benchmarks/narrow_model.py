"""A narrow model at a large size: how much of the slice oracle's speed-up ToMe reaches, in three runs.

ViT-S at 384 px, 577 tokens, with proportional attention, float32, sdpa, random weights, inference mode, one thread;
unmerged, merged and the oracle interleaved. The narrower a model, the more of its time matching and merging take.

    python benchmarks/narrow_model.py [--quick] [--out benchmarks/measured/narrow_model.json]
"""

from __future__ import annotations

import torch
from common import Row, encoder_row, run
from transformers import ViTConfig, ViTForImageClassification

SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
RUNS, ROUNDS = 3, 15
R, BATCH_SIZE = 45, 2
COLUMNS = {
    "run": "run",
    "model": "model",
    "r": "r",
    "batch_size": "batch",
    "unmerged_s": "unmerged s",
    "speedup": "speed-up",
    "oracle_speedup": "oracle",
    "oracle_share": "share of the oracle",
}


def measure(quick: bool) -> list[Row]:
    rows = []
    for number in range(1 if quick else RUNS):
        torch.manual_seed(number)
        model = ViTForImageClassification(ViTConfig(**SMALL, image_size=384)).eval()
        rounds = 3 if quick else ROUNDS
        rows.append({"run": number + 1, **encoder_row("ViT-S 384", model, R, BATCH_SIZE, rounds)})
    return rows


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="at least 95 % of the oracle's speed-up in the median",
        reached=lambda row: row["oracle_share"].median >= 0.95,
    )

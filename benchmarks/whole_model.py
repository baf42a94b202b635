"""Whole models: how much of the slice oracle's speed-up merging reaches.

ToMe with proportional attention, float32, sdpa, random weights, one thread; unmerged, merged and the oracle (the same
blocks on plainly cut tokens) interleaved. Share: of the oracle's speed-up, from the runs of the same round.

    python benchmarks/whole_model.py [--quick] [--out benchmarks/measured/whole_model.json]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import Row, encoder_row, run
from transformers import (
    PreTrainedModel,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
)

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], PreTrainedModel]
    r: int
    batch_size: int
    rounds: int


def vit(**options) -> Callable[[], PreTrainedModel]:
    return lambda: ViTForImageClassification(ViTConfig(**options))


CASES = (
    Case("ViT-B 224", vit(), 8, 4, 15),
    Case("ViT-B 224", vit(), 16, 4, 15),
    Case("ViT-B 384", vit(image_size=384), 45, 1, 13),
    Case("ViT-B 512", vit(image_size=512), 80, 1, 17),
    Case("ViT-L 224", vit(**LARGE), 8, 2, 15),
    Case("VideoMAE-B 1568", lambda: VideoMAEForVideoClassification(VideoMAEConfig()), 65, 1, 9),
)
COLUMNS = {
    "model": "model",
    "r": "r",
    "batch_size": "batch",
    "rounds": "rounds",
    "unmerged_s": "unmerged s",
    "speedup": "speed-up",
    "oracle_speedup": "oracle",
    "oracle_share": "share of the oracle",
}


def measure(quick: bool) -> list[Row]:
    rows = []
    for case in CASES[:1] if quick else CASES:
        torch.manual_seed(0)
        model = case.build().eval()
        rounds = 3 if quick else case.rounds
        rows.append(encoder_row(case.name, model, case.r, case.batch_size, rounds))
    return rows


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="at least 97 % of the oracle's speed-up in the median",
        reached=lambda row: row["oracle_share"].median >= 0.97,
    )

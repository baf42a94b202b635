"""How cost grows with tokens and batch: the speed-up, and the overhead of merging as a share of the time.

Four blocks of ViT-B width, float32, sdpa, one thread; r removes 8 % of the tokens in each block. Overhead: what the
merged model takes longer than the slice oracle, as a share of the whole merged model's time, not of a block's;
negative values are noise.

    python benchmarks/growth.py [--quick] [--out benchmarks/measured/growth.json]
"""

from __future__ import annotations

import torch
from common import Row, run
from transformers import ViTConfig, ViTForImageClassification

from hf_tome import MergeConfig
from hf_tome.profiling.benchmark import benchmark
from hf_tome.profiling.example_inputs import example_inputs
from hf_tome.profiling.rounds import Spread

PATCH = 16
CASES = ((224, 1), (224, 4), (224, 16), (224, 64), (384, 1), (512, 1), (512, 4), (768, 1), (1024, 1))
COLUMNS = {
    "tokens": "tokens",
    "batch_size": "batch",
    "r": "r",
    "unmerged_s": "unmerged s",
    "speedup": "speed-up",
    "oracle_speedup": "oracle",
    "overhead": "overhead of merging",
}


def measure(quick: bool) -> list[Row]:
    rows = []
    for image_size, batch_size in CASES[:2] if quick else CASES:
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(image_size=image_size, num_hidden_layers=4)).eval()
        tokens = (image_size // PATCH) ** 2 + 1
        r = round(0.08 * tokens)
        rounds = 5 if batch_size * tokens > 4096 else 11
        result = benchmark(
            model,
            example_inputs(model, batch_size),
            MergeConfig(r=r),
            rounds=3 if quick else rounds,
            warmup=1,
            clock="process",
            memory=False,
        )
        share = result.oracle_share
        rows.append(
            {
                "tokens": tokens,
                "batch_size": batch_size,
                "r": r,
                "unmerged_s": result.seconds["unmerged"].median,
                "speedup": result.speedup,
                "oracle_speedup": result.oracle_speedup,
                "overhead": Spread(1 - share.median, 1 - share.high, 1 - share.low),
            }
        )
    return rows


if __name__ == "__main__":
    run(__doc__, measure, COLUMNS, target="none: a picture of how the speed-up grows from 197 tokens on")

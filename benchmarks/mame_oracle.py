"""MaMe on photographs: how much of the slice oracle's speed-up merging reaches.

DeiT-Tiny on ImageNet photographs, first 8 blocks, float32, sdpa, one thread, inference mode; unmerged, merged and the
oracle (the same blocks on tokens cut to the mean of those that MaMe keeps) interleaved. Batches of 1 and 16, several
photographs or batches of them each, whose rounds are taken together.

The model and the photographs are read from the folder in HF_TOME_TEST_DATA, as in `mame_batch.py`.

    python benchmarks/mame_oracle.py [--quick] [--out benchmarks/measured/mame_oracle.json]
"""

from __future__ import annotations

import torch
from common import SHARED_DATA, Row, run
from mame_batch import photographs
from transformers import AutoModelForImageClassification

from hf_tome import MergeConfig
from hf_tome.profiling.benchmark import Benchmark, benchmark
from hf_tome.profiling.rounds import Spread

SETTINGS = ({"threshold": 0.9}, {"threshold": 0.8}, {"threshold": 0.7}, {"keep_ratio": 0.8})
BATCHES = {1: 8, 16: 2}
"""Batch size -> how many batches are measured."""
COLUMNS = {
    "setting": "MaMe",
    "batch_size": "batch",
    "tokens": "tokens at the end",
    "gflops_share": "GFLOPs, of unmerged",
    "unmerged_s": "unmerged s",
    "speedup": "speed-up",
    "oracle_speedup": "oracle",
    "oracle_share": "share of the oracle",
}


def measure(quick: bool) -> list[Row]:
    images = torch.cat(photographs(32))
    model = AutoModelForImageClassification.from_pretrained(
        SHARED_DATA / "deit-tiny-patch16-224", dtype=torch.float32
    ).eval()
    rows = []
    for fields in SETTINGS:
        for batch_size, count in BATCHES.items():
            batches = images[:: len(images) // (batch_size * count)][: batch_size * count].split(batch_size)
            results = [
                benchmark(
                    model,
                    {"pixel_values": batch},
                    MergeConfig(method="mame", **fields),
                    rounds=(2 if quick else 5) * (4 if batch_size == 1 else 1),
                    clock="process",
                    memory=False,
                )
                for batch in (batches[:1] if quick else batches)
            ]
            rows.append(row(", ".join(f"{name}={value}" for name, value in fields.items()), results))
    return rows


def row(setting: str, results: list[Benchmark]) -> Row:
    return {
        "setting": setting,
        "batch_size": results[0].batch_size,
        "tokens": sum(result.tokens[1] for result in results) / len(results),
        "gflops_share": sum(result.gflops / result.gflops_unmerged for result in results) / len(results),
        "unmerged_s": Spread.of([result.seconds["unmerged"].median for result in results]).median,
        **{
            name: Spread.of([getattr(result, name).median for result in results])
            for name in ("speedup", "oracle_speedup", "oracle_share")
        },
    }


def reached(row: Row) -> bool:
    """Return whether the share is high enough, and nothing is lost where a tenth of the multiply-adds goes."""
    share = 0.95 if "keep_ratio" in row["setting"] else 0.93
    return row["oracle_share"].median >= share and (row["gflops_share"] > 0.9 or row["speedup"].median >= 1)


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target=(
            "at least 93 % of the oracle's speed-up by threshold, 95 % by keep_ratio; not slower than unmerged where "
            "a tenth of the multiply-adds goes"
        ),
        reached=reached,
    )

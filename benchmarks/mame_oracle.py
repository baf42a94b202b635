"""MaMe on photographs: how much of the slice oracle's speed-up merging reaches.

DeiT-Tiny on ImageNet photographs, first 8 blocks, float32, sdpa, one thread, inference mode; unmerged, merged and the
oracle (the same blocks on tokens cut to the mean of those that MaMe keeps) interleaved. Batches of 1 and 16, several
photographs or batches of them each, whose rounds are taken together. Bare: what the oracle reaches if it computes the
similarities of even and odd tokens in float32, sorts their maxima and selects as many rows, and does nothing with it:
the least that a matching of tokens by PyTorch calls takes.

The model and the photographs are read from the folder in HF_TOME_TEST_DATA, as in `mame_batch.py`.

    python benchmarks/mame_oracle.py [--quick] [--out benchmarks/measured/mame_oracle.json]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import torch
from common import SHARED_DATA, Row, run
from mame_batch import photographs
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_tome import MergeConfig, apply, report
from hf_tome.merging import MatchInputs, Merge
from hf_tome.profiling import slice_oracle
from hf_tome.profiling.rounds import Spread, interleave
from hf_tome.profiling.slice_oracle import SLICE, TokenSlice, make_oracle, shallow_copy

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
    "bare_share": "of the bare product and sort",
}


class RowsOfSlice(TokenSlice):
    """The first M of N tokens, selected by their numbers as merging has to."""

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Select the rows, (B, N, C) -> (B, M, C)."""
        return x.index_select(1, self._kept[0]), super().merge(x, size)[1]


def match_barely(inputs: MatchInputs) -> Merge:
    metric, prefix = inputs.metric, inputs.num_prefix_tokens
    unit = metric / metric.norm(dim=-1, keepdim=True)
    scores = unit[:, prefix::2] @ unit[:, prefix + 1 :: 2].transpose(1, 2)
    scores.amax(dim=-1).argsort(dim=-1, descending=True)
    batch_size, num_tokens = metric.shape[:2]
    return RowsOfSlice(num_tokens, num_tokens - inputs.r, batch_size, metric.device)


def measure(quick: bool) -> list[Row]:
    images = torch.cat(photographs(32))
    model = AutoModelForImageClassification.from_pretrained(
        SHARED_DATA / "deit-tiny-patch16-224", dtype=torch.float32
    ).eval()
    rows = []
    for fields in SETTINGS:
        for batch_size, count in BATCHES.items():
            batches = images[:: len(images) // (batch_size * count)][: batch_size * count].split(batch_size)
            rounds = (2 if quick else 7) * (4 if batch_size == 1 else 1)
            config = MergeConfig(method="mame", **fields)
            parts = [measure_batch(model, batch, config, rounds) for batch in (batches[:1] if quick else batches)]
            setting = ", ".join(f"{name}={value}" for name, value in fields.items())
            rows.append({"setting": setting, "batch_size": batch_size, **together(parts)})
    return rows


@torch.inference_mode()
def measure_batch(model: PreTrainedModel, images: Tensor, config: MergeConfig, rounds: int) -> Row:
    """Return the seconds of every round by variant, the tokens at the end, and the share of the multiply-adds."""
    merged = apply(shallow_copy(model), config)
    merged(pixel_values=images)
    (tower,) = report(merged).towers
    assert tower.tokens is not None
    assert tower.gflops is not None
    assert tower.gflops_unmerged is not None
    path = [tower.tokens[0][0], *(after for _, after in tower.tokens)]
    variants = {"unmerged": model, "merged": merged, "oracle": make_oracle(shallow_copy(model), [path])}
    with patch.object(slice_oracle, "SLICE", replace(SLICE, match=match_barely)):
        variants["bare"] = make_oracle(shallow_copy(model), [path])
    runs: dict[str, Callable[[], object]] = {
        name: lambda variant=variant: variant(pixel_values=images)  # type: ignore[misc]
        for name, variant in variants.items()
    }
    seconds = interleave(runs, rounds, clock="process")
    return {"seconds": seconds, "tokens": path[-1], "gflops_share": tower.gflops / tower.gflops_unmerged}


def together(parts: list[Row]) -> Row:
    """Return one row of several batches; pairs are of the same round of the same batch."""

    def pairs(slow: str, fast: str) -> Spread:
        return Spread.of(
            [a / b for part in parts for a, b in zip(part["seconds"][slow], part["seconds"][fast], strict=True)]
        )

    return {
        "tokens": statistics.mean(part["tokens"] for part in parts),
        "gflops_share": statistics.mean(part["gflops_share"] for part in parts),
        "unmerged_s": Spread.of([second for part in parts for second in part["seconds"]["unmerged"]]).median,
        "speedup": pairs("unmerged", "merged"),
        "oracle_speedup": pairs("unmerged", "oracle"),
        "oracle_share": pairs("oracle", "merged"),
        "bare_share": pairs("oracle", "bare"),
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

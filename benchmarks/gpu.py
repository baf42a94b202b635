"""On a GPU: speed-up and peak memory in half precision, eager, with sdpa, compiled and in CUDA graphs.

Random weights; wall time of synchronised forwards, unmerged, merged and the slice oracle interleaved. The paper's
pairs are ViT-L@512 r=40 (2.05x), ViT-H@518 r=40 (2.06x) and VideoMAE-L r=65 (2.22x). A case that fails is a row that
says why. On a CPU (`--device cpu --quick`) it shows that the script works, and nothing else.

    python benchmarks/gpu.py [--quick] [--device cuda] [--out benchmarks/measured/gpu.json]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from common import Row, add_gpu_options, measure_cases, run
from torch import nn
from transformers import PreTrainedModel, VideoMAEConfig, VideoMAEForVideoClassification, ViTConfig
from transformers import ViTForImageClassification as ViT

from hf_tome import MergeConfig
from hf_tome.config import format_config
from hf_tome.profiling.benchmark import benchmark
from hf_tome.profiling.example_inputs import example_inputs


def sizes(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


BASE, LARGE, HUGE = sizes(768, 12, 12), sizes(1024, 24, 16), sizes(1280, 32, 16)
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], int]] = {
    "ViT-B 224": (lambda: ViT(ViTConfig(**BASE)), 16),
    "ViT-L 224": (lambda: ViT(ViTConfig(**LARGE)), 8),
    "ViT-H/14 224": (lambda: ViT(ViTConfig(**HUGE, patch_size=14)), 7),
    "ViT-L 512": (lambda: ViT(ViTConfig(**LARGE, image_size=512)), 40),
    "ViT-H/14 518": (lambda: ViT(ViTConfig(**HUGE, image_size=518, patch_size=14)), 40),
    "VideoMAE-L": (lambda: VideoMAEForVideoClassification(VideoMAEConfig(**LARGE)), 65),
}
"""Name -> (builder, r)."""

MAME_KEEPS = 0.7
"""The share of the tokens that a block keeps with MaMe."""

WRAPPERS: dict[str, Callable[[nn.Module], Any] | None] = {
    "eager mode": None,
    "compiled": partial(torch.compile, fullgraph=True),
    "CUDA graphs": partial(torch.compile, fullgraph=True, mode="reduce-overhead"),
}
COLUMNS = {
    "model": "model",
    "config": "config",
    "dtype": "dtype",
    "attention": "attention",
    "run": "run",
    "batch_size": "batch",
    "images_per_second": "images/s",
    "speedup": "speed-up",
    "oracle_share": "share of the oracle",
    "exact_speedup": "of it by the last block alone",
    "memory_share": "memory, of unmerged",
    "why": "note",
}


@dataclass(frozen=True)
class Case:
    model: str
    dtype: str = "float16"
    attention: str = "sdpa"
    run: str = "eager mode"
    batch_size: int = 32
    method: str = "tome"


def cases(quick: bool) -> Iterator[Case]:
    if quick:
        yield Case("ViT-B 224", "bfloat16", batch_size=2)
        yield Case("ViT-B 224", "bfloat16", batch_size=2, method="mame")
        return
    for model in MODELS:
        yield Case(model)
    for batch_size in (1, 4, 16, 64, 256):  # where the speed-up begins to pay
        yield Case("ViT-B 224", batch_size=batch_size)
        yield Case("ViT-L 512", batch_size=min(batch_size, 64))
    for dtype, attention in itertools.product(
        ("float16", "bfloat16"), ("sdpa", "flash_attention_2", "flex_attention", "eager")
    ):
        yield Case("ViT-L 512", dtype, attention)
    for model in ("ViT-B 224", "ViT-L 512", "VideoMAE-L"):
        yield Case(model, method="mame")
        yield Case(model, "bfloat16", method="mame", batch_size=1)
    for how, batch_size in itertools.product(list(WRAPPERS)[1:], (1, 32)):
        yield Case("ViT-L 224", run=how, batch_size=batch_size)


def config_of(case: Case, r: int) -> MergeConfig:
    """Return the paper's r, or MaMe with the number of tokens fixed: random weights have no threshold to go by."""
    return MergeConfig(r=r) if case.method == "tome" else MergeConfig(method="mame", keep_ratio=MAME_KEEPS)


def measure_case(case: Case, quick: bool, device: str) -> Row:
    build, r = MODELS[case.model]
    torch.manual_seed(0)
    with torch.device(device):
        model = build().eval().to(getattr(torch, case.dtype))
    model.set_attn_implementation(case.attention)
    torch._dynamo.reset()
    result = benchmark(
        model,
        example_inputs(model, case.batch_size),
        config_of(case, r),
        rounds=5 if quick else 30,
        warmup=5,
        wrap=WRAPPERS[case.run],
    )
    memory = result.peak_memory_mib
    return {
        "images_per_second": result.images_per_second["merged"],
        "speedup": result.speedup,
        "oracle_share": result.oracle_share,
        "exact_speedup": result.exact_speedup,
        "memory_share": memory["merged"] / memory["unmerged"],
        "why": result.why,
    }


def measure(options: argparse.Namespace) -> list[Row]:
    chosen = list(dict.fromkeys(cases(options.quick)))
    configs = [{"config": format_config(config_of(case, MODELS[case.model][1]))} for case in chosen]
    rows = measure_cases(options, chosen, measure_case)
    return [{**vars(case), **config, **row} for case, config, row in zip(chosen, configs, rows)]


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="at least 97 % of the oracle's speed-up in the median",
        reached=lambda row: row["oracle_share"].median >= 0.97 if "oracle_share" in row else None,
        device=lambda options: options.device,
        add_options=add_gpu_options,
    )

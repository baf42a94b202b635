"""A training step: forward, backward and the optimizer's step, of ViT-S at 224 px.

ToMe with r=13, MaMe with keep_ratio=0.8 in the first 8 blocks, float32, sdpa, SGD, one thread; unmerged, merged and
the slice oracle interleaved. Memory is the peak of what torch's operators return and is alive, weights included.

    python benchmarks/training.py [--quick] [--batch-size N] [--out benchmarks/measured/training.json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import Row, run
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_tome import MergeConfig, apply
from hf_tome.adapters.encoders.families.dims import encoder_shape
from hf_tome.config.text import format_config
from hf_tome.inspection.flops import planned_tokens
from hf_tome.profiling.example_inputs import example_inputs
from hf_tome.profiling.measure import peak_memory_mib
from hf_tome.profiling.rounds import Spread, interleave, ratio
from hf_tome.profiling.slice_oracle import make_oracle, shallow_copy

CONFIGS = (MergeConfig(r=13), MergeConfig(method="mame", keep_ratio=0.8))
LEAST_SHARE = {"tome": 0.97, "mame": 0.95}
MOST_MEMORY = 1.03
COLUMNS = {
    "model": "model",
    "config": "merging",
    "batch_size": "batch",
    "unmerged_s": "unmerged s",
    "speedup": "speed-up",
    "oracle_speedup": "oracle",
    "oracle_share": "share of the oracle",
    "unmerged_mib": "unmerged MiB",
    "merged_mib": "merged MiB",
    "oracle_memory": "memory, of the oracle's",
}


def stepper(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return a training step of a model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    labels = torch.zeros(len(inputs["pixel_values"]), dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()

    return step


def measure(options: argparse.Namespace) -> list[Row]:
    """Measure a step with each config."""
    torch.manual_seed(0)
    small = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    model = ViTForImageClassification(ViTConfig(**small)).train()
    inputs = example_inputs(model, 2 if options.quick else options.batch_size)
    return [measure_config(model, config, inputs, 3 if options.quick else 9) for config in CONFIGS]


def measure_config(
    model: ViTForImageClassification, config: MergeConfig, inputs: dict[str, torch.Tensor], rounds: int
) -> Row:
    """Measure a step unmerged, merged and as the oracle."""
    plan = planned_tokens(encoder_shape(model.config), config)
    oracle = make_oracle(shallow_copy(model), [[plan[0][0], *(after for _, after in plan)]])
    variants = {"unmerged": model, "merged": apply(shallow_copy(model), config), "oracle": oracle}
    steps = {name: stepper(variant, inputs) for name, variant in variants.items()}
    seconds = interleave(steps, rounds, warmup=1, clock="process")
    memory = {name: peak_memory_mib(steps[name], variant, variant.device) for name, variant in variants.items()}
    return {
        "model": "ViT-S 224",
        "config": format_config(config),
        "method": config.method,
        "batch_size": len(inputs["pixel_values"]),
        "unmerged_s": Spread.of(seconds["unmerged"]).median,
        "speedup": ratio(seconds, "unmerged", "merged"),
        "oracle_speedup": ratio(seconds, "unmerged", "oracle"),
        "oracle_share": ratio(seconds, "oracle", "merged"),
        "unmerged_mib": memory["unmerged"],
        "merged_mib": memory["merged"],
        "oracle_memory": memory["merged"] / memory["oracle"],
    }


def reached(row: Row) -> bool:
    """Return whether speed and memory are near enough to the oracle's."""
    return row["oracle_share"].median >= LEAST_SHARE[row["method"]] and row["oracle_memory"] <= MOST_MEMORY


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target=(
            "of the oracle's speed-up at least 97 % with ToMe and 95 % with MaMe's keep_ratio, at most 3 % more memory"
        ),
        reached=reached,
        add_options=lambda parser: parser.add_argument("--batch-size", type=int, default=16),
    )

"""A training step: forward, backward and the optimizer's step, of ViT-S at 224 px.

ToMe with r=13, batch 16, float32, sdpa, SGD, one thread; unmerged, merged and the slice oracle interleaved.

    python benchmarks/training.py [--quick] [--out benchmarks/measured/training.json]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Row, run
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_tome import MergeConfig, apply
from hf_tome.adapters.encoders.families.dims import encoder_shape
from hf_tome.inspection.flops import planned_tokens
from hf_tome.profiling.example_inputs import example_inputs
from hf_tome.profiling.rounds import Spread, interleave, ratio
from hf_tome.profiling.slice_oracle import make_oracle, shallow_copy

COLUMNS = {
    "model": "model",
    "r": "r",
    "batch_size": "batch",
    "unmerged_s": "unmerged s",
    "speedup": "speed-up",
    "oracle_speedup": "oracle",
    "oracle_share": "share of the oracle",
}


def stepper(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    labels = torch.zeros(len(inputs["pixel_values"]), dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()

    return step


def measure(quick: bool) -> list[Row]:
    torch.manual_seed(0)
    small = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
    model = ViTForImageClassification(ViTConfig(**small)).train()
    config, batch_size = MergeConfig(r=13), 2 if quick else 16
    inputs = example_inputs(model, batch_size)
    plan = planned_tokens(encoder_shape(model.config), config)
    oracle = make_oracle(shallow_copy(model), [[plan[0][0], *(after for _, after in plan)]])
    variants = {"unmerged": model, "merged": apply(shallow_copy(model), config), "oracle": oracle}
    steps = {name: stepper(variant, inputs) for name, variant in variants.items()}
    seconds = interleave(steps, 3 if quick else 9, warmup=1, clock="process")
    return [
        {
            "model": "ViT-S 224",
            "r": 13,
            "batch_size": batch_size,
            "unmerged_s": Spread.of(seconds["unmerged"]).median,
            "speedup": ratio(seconds, "unmerged", "merged"),
            "oracle_speedup": ratio(seconds, "unmerged", "oracle"),
            "oracle_share": ratio(seconds, "oracle", "merged"),
        }
    ]


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="at least 1.4 times as fast as the unmerged step",
        reached=lambda row: row["speedup"].median >= 1.4,
    )

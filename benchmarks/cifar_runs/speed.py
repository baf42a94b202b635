"""A training step, unmerged, merged and as the slice oracle: processor time, multiply-adds and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hf_tome import MergeConfig, apply, report
from hf_tome.inspection.flops import gflops
from hf_tome.models.swin_flops import swin_gflops
from hf_tome.profiling.measure import peak_memory_mib
from hf_tome.profiling.rounds import Spread, interleave, ratio
from hf_tome.profiling.slice_oracle import make_oracle, shallow_copy

from .models import CONFIGS, build

Seconds = dict[str, list[float]]


def stepper(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """Return a training step of a model on the same images, AdamW's included."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = torch.arange(len(images)) % 10

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(pixel_values=images, labels=labels).loss.backward()
        optimizer.step()

    return step


def measure_step(config: MergeConfig, images: Tensor, rounds: int) -> dict[str, Any]:
    """Return what merging gains in a training step of the ViT, beside the slice oracle."""
    unmerged = build("vit", 0)
    merged = apply(shallow_copy(unmerged), config)
    merged(pixel_values=images[:2])
    (tower,) = report(merged).towers
    assert tower.tokens is not None
    path = [tower.tokens[0][0], *(after for _, after in tower.tokens)]
    variants = {"unmerged": unmerged, "merged": merged, "oracle": make_oracle(shallow_copy(unmerged), [path])}
    steps = {name: stepper(variant, images) for name, variant in variants.items()}
    seconds = interleave(steps, rounds, warmup=1, clock="process")
    memory = {name: peak_memory_mib(steps[name], variant, torch.device("cpu")) for name, variant in variants.items()}
    return {
        "seconds_per_step": {name: Spread.of(values).median for name, values in seconds.items()},
        "speedup": ratio(seconds, "unmerged", "merged").median,
        "oracle_speedup": ratio(seconds, "unmerged", "oracle").median,
        "oracle_share": ratio(seconds, "oracle", "merged").median,
        "peak_mib": memory,
        "gflops": tower.gflops,
        "gflops_unmerged": gflops(CONFIGS["vit"]),
        "tokens": path,
    }


def measure_swins(images: Tensor, rounds: int) -> dict[str, Any]:
    """Return the same of a training step of Swin and MaMe-Swin."""
    steps = {name: stepper(build(name, 0), images) for name in ("swin", "mame_swin")}
    seconds = interleave(steps, rounds, warmup=1, clock="process")
    models = {name: build(name, 0) for name in steps}
    return {
        "seconds_per_step": {name: Spread.of(values).median for name, values in seconds.items()},
        "peak_mib": {
            name: peak_memory_mib(stepper(model, images), model, torch.device("cpu")) for name, model in models.items()
        },
        "gflops": {name: swin_gflops(CONFIGS[name]) for name in steps},
        "parameters": {name: sum(value.numel() for value in model.parameters()) for name, model in models.items()},
    }

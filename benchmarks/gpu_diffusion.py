"""On a GPU: a step of whole denoisers, half of the tokens merged, in half precision, with sdpa and flash attention.

Stable Diffusion 1.5, SDXL and Flux.1 in full size with random weights, from 512 to 2,048 pixels; one image, the UNets
with a guidance pair. Wall time of synchronised steps: unmerged, merged and the slice oracle in turns. Flash attention
takes no mask, so log(size) is left out there. A case that fails is a row that says why. On a CPU
(`--device cpu --quick`) it shows that the script works, and nothing else.

    python benchmarks/gpu_diffusion.py [--quick] [--device cuda] [--out benchmarks/measured/gpu_diffusion.json]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from common import Row, add_gpu_options, measure_cases, run
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusion_unet import slicing
from torch.nn.attention import SDPBackend, sdpa_kernel

import hf_tome
from hf_tome import MergeConfig

Inputs = dict[str, Any]
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SMALL_UNET = {"norm_num_groups": 8, "cross_attention_dim": 32}
QUICK: dict[str, dict[str, Any]] = {
    "SD 1.5": {**SMALL_UNET, "block_out_channels": (16, 32, 32, 32)},
    "SDXL": {
        **SMALL_UNET,
        "block_out_channels": (16, 32, 32),
        "transformer_layers_per_block": 1,
        "attention_head_dim": 2,
    },
    "Flux": {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    },
}
ROUNDS, WARM_UP = 10, 3


def make(name: str, quick: bool) -> Any:
    """Return a denoiser in full size, or a small one of the same kind."""
    if name == "Flux":
        return FluxTransformer2DModel(**(QUICK[name] if quick else {}))
    sizes = {**(SD15 if name == "SD 1.5" else SDXL), **(QUICK[name] if quick else {})}
    return UNet2DConditionModel(**sizes)


def make_inputs(model: Any, pixels: int, device: str, dtype: torch.dtype) -> Inputs:
    """Return the inputs of a step for a picture of so many pixels a side."""
    config, options = model.config, {"device": device, "dtype": dtype}
    if isinstance(model, FluxTransformer2DModel):
        side = pixels // 16
        ids = torch.zeros(side, side, 3, **options)
        ids[..., 1], ids[..., 2] = torch.arange(side)[:, None], torch.arange(side)[None]
        return {
            "hidden_states": torch.randn(1, side * side, config.in_channels, **options),
            "encoder_hidden_states": torch.randn(1, 512, config.joint_attention_dim, **options),
            "pooled_projections": torch.randn(1, config.pooled_projection_dim, **options),
            "timestep": torch.tensor([0.5], **options),
            "img_ids": ids.flatten(0, 1),
            "txt_ids": torch.zeros(512, 3, **options),
        }
    inputs: Inputs = {
        "sample": torch.randn(2, config.in_channels, pixels // 8, pixels // 8, **options),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.randn(2, 77, config.cross_attention_dim, **options),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, pooled, **options),
            "time_ids": torch.zeros(2, 6, **options),
        }
    return inputs


def half(inputs: Inputs) -> Inputs:
    """Return Flux's inputs with the first half of the image's tokens: its oracle."""
    count = inputs["hidden_states"].shape[1] // 2
    return {**inputs, "hidden_states": inputs["hidden_states"][:, :count], "img_ids": inputs["img_ids"][:count]}


@dataclass(frozen=True)
class Case:
    model: str
    pixels: int
    modules: str
    dtype: str = "bfloat16"
    attention: str = "sdpa"


def cases(quick: bool) -> Iterator[Case]:
    if quick:
        yield from (Case("SD 1.5", 128, "attention"), Case("SDXL", 128, "block"), Case("Flux", 256, "block"))
        return
    models = {"SD 1.5": ("attention", "block"), "SDXL": ("attention", "block"), "Flux": ("block",)}
    for (name, places), pixels in itertools.product(models.items(), (512, 1024, 2048)):
        for modules, dtype, attention in itertools.product(places, ("float16", "bfloat16"), ("sdpa", "flash")):
            yield Case(name, pixels, modules, dtype, attention)


def config_of(case: Case, quick: bool) -> MergeConfig:
    proportional: Any = False if case.attention == "flash" else "auto"
    min_tokens = 16 if quick else 1024
    return MergeConfig(ratio=0.5, modules=case.modules, min_tokens=min_tokens, proportional_attention=proportional)


def measure_case(case: Case, quick: bool, device: str) -> Row:
    dtype = getattr(torch, case.dtype)
    torch.manual_seed(0)
    with torch.device(device):
        default, _ = torch.get_default_dtype(), torch.set_default_dtype(dtype)
        try:
            model = make(case.model, quick).eval()  # in half precision from the start: Flux has 12 B parameters
        finally:
            torch.set_default_dtype(default)
    inputs = make_inputs(model, case.pixels, device, dtype)
    config = config_of(case, quick)
    is_unet = isinstance(model, UNet2DConditionModel)
    variants: dict[str, tuple[Callable[[], AbstractContextManager], Inputs]] = {
        "unmerged": (nullcontext, inputs),
        "merged": (lambda: hf_tome.merged(model, config), inputs),
        "oracle": (lambda: slicing(model, case.modules, config.min_tokens), inputs)
        if is_unet
        else (nullcontext, half(inputs)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    memory = dict.fromkeys(variants, 0.0)
    for turn in range((1 if quick else ROUNDS) + WARM_UP):
        for name, (change, values) in variants.items():
            # Flash attention alone raises where it cannot run, instead of something else that is slower.
            with change(), sdpa_kernel(SDPBackend.FLASH_ATTENTION) if case.attention == "flash" else nullcontext():
                taken, peak = time_step(model, values, device)
            memory[name] = max(memory[name], peak)
            if turn >= WARM_UP:
                seconds[name].append(taken)
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "milliseconds": 1000 * medians["unmerged"],
        "speedup": medians["unmerged"] / medians["merged"],
        "oracle_speedup": medians["unmerged"] / medians["oracle"],
        "share": medians["oracle"] / medians["merged"],
        "memory_share": memory["merged"] / memory["unmerged"] if memory["unmerged"] else None,
    }


@torch.inference_mode()
def time_step(model: Any, inputs: Inputs, device: str) -> tuple[float, float]:
    """Return the seconds of a step and its peak memory in bytes, 0 on a CPU."""
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    model(**inputs)
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() if is_cuda else 0.0


def measure(options: argparse.Namespace) -> list[Row]:
    chosen = list(cases(options.quick))
    return [{**vars(case), **row} for case, row in zip(chosen, measure_cases(options, chosen, measure_case))]


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        {
            "model": "model",
            "pixels": "pixels",
            "modules": "merged around",
            "dtype": "dtype",
            "attention": "attention",
            "milliseconds": "unmerged, ms",
            "speedup": "speed-up",
            "oracle_speedup": "oracle's",
            "share": "share of the oracle's speed",
            "memory_share": "memory, of unmerged",
            "why": "note",
        },
        target="95 % of the oracle's speed, 92 % for Flux",
        reached=lambda row: row["share"] >= (0.92 if row["model"] == "Flux" else 0.95) if "share" in row else None,
        device=lambda options: options.device,
        add_options=add_gpu_options,
    )

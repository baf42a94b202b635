"""The whole UNet of Stable Diffusion 1.5, half of its tokens merged, against the oracle of the schedule and tomesd.

One step of random weights (860 M parameters, float32) on 64x64 latents, a guidance pair, and on 128x128, one image.
The oracle merges nothing: where hf_tome merges, attention sees the first half of the tokens, whose output is repeated,
or a block runs on the first half and the rest is copied. tomesd 0.1.3 merges at as many levels as hf_tome does; it has
no whole blocks. Processor time of one thread, all variants in turns; ratios are taken turn by turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from common import Row, run
from diffusers import UNet2DConditionModel

import hf_tome
from hf_tome import MergeConfig
from hf_tome.profiling.rounds import ratio, time_once

SMALL = {"block_out_channels": (32, 64, 64, 64), "norm_num_groups": 8, "cross_attention_dim": 64}
"""For `--quick`."""
TEXT = 77
UNMERGED = ("", "unmerged")
Variant = Callable[[Any], Any]
"""From the UNet to a context in which it is changed."""


@dataclass(frozen=True)
class Schedule:
    """Where half of the tokens merge, and how tomesd is told the same.

    Attributes:
        name: in the table.
        modules: as in `MergeConfig`.
        levels: how many levels of the UNet merge, of 1, 1/4, 1/16 of the tokens.
    """

    name: str
    modules: str
    levels: int


SCHEDULES = (
    Schedule("around attention, finest level", "attention", 1),
    Schedule("around attention, 1,024 tokens and more", "attention", 0),
    Schedule("whole blocks, 1,024 tokens and more", "block", 0),
)


def make_unet(quick: bool) -> Any:
    """Return the UNet of Stable Diffusion 1.5 with random weights."""
    torch.manual_seed(0)
    sizes = SMALL if quick else {"cross_attention_dim": 768}
    return UNet2DConditionModel(sample_size=64, attention_head_dim=8, **sizes).eval()


@contextmanager
def tomesd_patch(unet: Any, max_downsample: int) -> Iterator[None]:
    import tomesd

    tomesd.apply_patch(unet, ratio=0.5, max_downsample=max_downsample)
    yield
    tomesd.remove_patch(unet)


@contextmanager
def slicing(unet: Any, modules: str, min_tokens: int) -> Iterator[None]:
    """Let the blocks that would merge, or their self-attentions, see half of the tokens."""
    blocks = [module for module in unet.modules() if type(module).__name__ == "BasicTransformerBlock"]
    parts = blocks if modules == "block" else [block.attn1 for block in blocks]
    for part in parts:
        part.forward = partial(_on_half, part.forward, modules, min_tokens)
    yield
    for part in parts:
        del part.forward


def _on_half(forward: Callable, modules: str, min_tokens: int, hidden: Any, *args: Any, **kwargs: Any) -> Any:
    count = hidden.shape[1]
    if count < min_tokens:
        return forward(hidden, *args, **kwargs)
    out = forward(hidden[:, : count // 2], *args, **kwargs)
    return torch.cat([out, hidden[:, count // 2 :]], dim=1) if modules == "block" else out.repeat(1, 2, 1)


def variants(schedule: Schedule, side: int) -> dict[str, Variant]:
    """Return what is timed of a schedule, for latents of `side` x `side`."""
    min_tokens = side * side if schedule.levels else 1024
    downsample = 1 if schedule.levels else side // 32
    config = MergeConfig(ratio=0.5, modules=schedule.modules, min_tokens=min_tokens)
    found: dict[str, Variant] = {
        "oracle": lambda unet: slicing(unet, schedule.modules, min_tokens),
        "hf_tome": lambda unet: hf_tome.merged(unet, config),
    }
    if schedule.modules == "attention":
        found["tomesd"] = lambda unet: tomesd_patch(unet, downsample)
    return found


@torch.inference_mode()
def time_turns(unet: Any, side: int, images: int, turns: int, cases: dict[tuple[str, str], Variant]) -> dict:
    """Return the seconds of each turn of each case; the first warms up, and is left out if there are others."""
    torch.manual_seed(1)
    width = unet.config.cross_attention_dim
    inputs = torch.randn(images, 4, side, side), torch.tensor(500), torch.randn(images, TEXT, width)
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for turn in range(turns):
        for case, change in cases.items():
            with change(unet):
                seconds[case].append(time_once(lambda: unet(*inputs), "process", unet.device))
            print(side, turn, case, seconds[case][-1], file=sys.stderr, flush=True)
    return {case: values[1:] or values for case, values in seconds.items()}


def measure(options: argparse.Namespace) -> list[Row]:
    unet = make_unet(options.quick)
    rows: list[Row] = []
    for side, turns in zip([64] if options.quick else options.sides, options.turns):
        images = 2 if side <= 64 else 1
        schedules = SCHEDULES if side <= 64 else SCHEDULES[1:]
        cases: dict[tuple[str, str], Variant] = {UNMERGED: nullcontext}
        for schedule in schedules:
            cases |= {(schedule.name, name): change for name, change in variants(schedule, side).items()}
        seconds = time_turns(unet, side, images, turns, cases)
        for (schedule_name, name), values in seconds.items():
            rows.append(
                {
                    "latents": f"{side}x{side}",
                    "images": images,
                    "schedule": schedule_name or "-",
                    "variant": name,
                    "turns": len(values),
                    "seconds": median(values),
                    "speedup": ratio(seconds, UNMERGED, (schedule_name, name)),
                    "share": None
                    if name in ("unmerged", "oracle")
                    else ratio(seconds, (schedule_name, "oracle"), (schedule_name, name)),
                }
            )
    return rows


def reached(row: Row) -> bool | None:
    return row["share"].median >= 0.95 if row["variant"] == "hf_tome" else None


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128], help="sides of the latents")
    parser.add_argument("--turns", type=int, nargs="+", default=[4, 2], help="of each side; the first warms up")


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        {
            "latents": "latents",
            "images": "images",
            "schedule": "half merged",
            "variant": "variant",
            "turns": "turns",
            "seconds": "seconds",
            "speedup": "speed-up",
            "share": "share of the oracle's speed",
        },
        target="95 % of the oracle's speed of the same schedule, and ahead of tomesd",
        reached=reached,
        add_options=add_options,
    )

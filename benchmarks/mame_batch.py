"""MaMe in batches of real photographs, where every image keeps a number of tokens of its own.

DeiT-Tiny on ImageNet photographs, threshold 0.7, first 8 blocks, float32, sdpa, one thread. Alone: the images one at a
time. Packed: batches of 16, padding left out of the computation. Padded: the same with padding computed. GFLOPs are
multiply-adds an image that are really spent; a ratio of times is of runs over the same batch in the same round.

The model and the photographs are read from the folder in HF_TOME_TEST_DATA, `../shared/data` by default:
`deit-tiny-patch16-224/` and `imagenet_sample/validation/*/*.jpg`.

    python benchmarks/mame_batch.py [--quick] [--out benchmarks/measured/mame_batch.json]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from common import SHARED_DATA, Row, run
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_tome import MergeConfig, apply, report
from hf_tome.adapters.encoders import block as encoder
from hf_tome.adapters.encoders import packing
from hf_tome.api import targets
from hf_tome.profiling.rounds import Spread, interleave, ratio
from hf_tome.profiling.slice_oracle import shallow_copy

BATCH = 16
THRESHOLD = 0.7
COLUMNS = {
    "how": "how",
    "images": "images",
    "tokens": "tokens at the end",
    "same_tokens": "images that keep as many as alone",
    "difference": "largest difference of logits from alone",
    "gflops": "GFLOPs (MACs)",
    "gflops_share": "of those alone",
    "ms": "ms an image",
    "time_share": "time, of that alone",
    "speedup": "times as fast as unmerged",
}


def photographs(count: int) -> list[torch.Tensor]:
    """Return photographs as the model takes them, in batches."""
    processor = AutoImageProcessor.from_pretrained(SHARED_DATA / "deit-tiny-patch16-224", backend="pil")
    files = sorted((SHARED_DATA / "imagenet_sample" / "validation").glob("*/*.jpg"))
    images = [Image.open(file).convert("RGB") for file in files[:: len(files) // count][:count]]
    return list(processor(images, return_tensors="pt")["pixel_values"].split(BATCH))


@contextmanager
def computing_padding() -> Iterator[None]:
    with patch.object(encoder, "layout_of", lambda *arguments: packing.PADDED):
        yield


@dataclass
class Seen:
    """What one way of running gave, image by image."""

    logits: list[torch.Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    gflops: list[float] = field(default_factory=list)

    def add(self, model: Any, images: torch.Tensor) -> None:
        self.logits += list(model(images).logits)
        self.tokens += targets(model)[0].recorder.summary.real[-1].tolist()
        self.gflops += [report(model).towers[0].gflops] * len(images)


def measure(quick: bool) -> list[Row]:
    batches = photographs(32 if quick else 128)
    model = AutoModelForImageClassification.from_pretrained(
        SHARED_DATA / "deit-tiny-patch16-224", dtype=torch.float32
    ).eval()
    merged = apply(shallow_copy(model), MergeConfig(method="mame", threshold=THRESHOLD))

    def alone(images: torch.Tensor) -> None:
        for image in images.split(1):
            merged(image)

    def padded(images: torch.Tensor) -> None:
        with computing_padding():
            merged(images)

    ways = {"unmerged": model, "alone": alone, "packed": merged, "padded": padded}
    seen = {name: Seen() for name in ("alone", "packed", "padded")}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for images in batches:
            for image in images.split(1):
                seen["alone"].add(merged, image)
            seen["packed"].add(merged, images)
            with computing_padding():
                seen["padded"].add(merged, images)
            runs = {name: partial(way, images) for name, way in ways.items()}
            for name, values in interleave(runs, 2, warmup=1, clock="process").items():
                seconds[name] += values
    return [row(name, seen, seconds, len(batches) * BATCH) for name in seen]


def row(name: str, seen: dict[str, Seen], seconds: dict[str, list[float]], images: int) -> Row:
    this, reference = seen[name], seen["alone"]
    gflops = sum(this.gflops) / images
    return {
        "how": name,
        "images": images,
        "tokens": sum(this.tokens) / images,
        "same_tokens": sum(merged == other for merged, other in zip(this.tokens, reference.tokens)),
        "difference": max(float((merged - other).abs().max()) for merged, other in zip(this.logits, reference.logits)),
        "gflops": gflops,
        "gflops_share": gflops / (sum(reference.gflops) / images),
        "ms": 1e3 * Spread.of(seconds[name]).median / BATCH,
        "time_share": ratio(seconds, name, "alone"),
        "speedup": ratio(seconds, "unmerged", name),
    }


def reached(row: Row) -> bool | None:
    if row["how"] != "packed":
        return None
    return row["same_tokens"] == row["images"] and row["gflops_share"] <= 1.15 and row["speedup"].median > 1


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="packed: tokens as alone, at most 1.15 of the GFLOPs alone, faster than unmerged",
        reached=reached,
    )

"""Scenes with their masks side by side: the right one, the unmerged model's, and that of each merge config."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ..api import merged
from ..config import parse_config
from ..config.text import short_name
from ..evaluation.job import Job
from ..evaluation.metrics.maps import SegmentationScorer
from ..evaluation.running.batches import to_model
from ..evaluation.store.results import Results
from ..visualize.sheet import contact_sheet

if TYPE_CHECKING:
    from PIL import Image

ENLARGED = 2
DIMMED = 0.35
"""How bright the scene is under its mask."""


def masks_picture(job: Job, configs: Sequence[str], results: Results, count: int) -> Image.Image:
    """Return a sheet of the first scenes of a segmentation job, a row each, with mIoU and speed-up over each column.

    Args:
        job: of the task `semantic-segmentation`.
        configs: the merge configs to draw, as `--config` takes them.
        results: of the job with these configs, for the labels.
        count: scenes to draw.
    """
    samples = list(islice(job.data, count))
    inputs = to_model(job.prepare(samples), job.model)
    columns = [_masks(job, inputs, samples, None), *(_masks(job, inputs, samples, text) for text in configs)]
    titles = ["scene", "right", *(_title(results, name) for name in ("unmerged", *configs))]
    cells = []
    for row, sample in enumerate(samples):
        scene = np.asarray(sample.content.image)
        masks = (sample.content.values, *(column[row] for column in columns))
        cells += [_enlarged(scene), *(_painted(scene, mask) for mask in masks)]
    labels = titles + [""] * (len(cells) - len(titles))
    return contact_sheet(cells, len(titles), labels)


def _masks(job: Job, inputs: Any, samples: Sequence[Any], config: str | None) -> list[np.ndarray]:
    """Return the class of each pixel of each sample."""
    with torch.inference_mode(), nullcontext() if config is None else merged(job.model, parse_config(config)):
        outputs = job.scorer.join([job.run(job.model, inputs)])
    return cast(SegmentationScorer, job.scorer).maps(samples, outputs)


def _title(results: Results, name: str) -> str:
    row = next((row for row in results.rows if row["name"] == name), None)
    if row is None:
        return short_name(name)
    speedup = row.get("speedup")
    faster = "" if speedup is None or name == "unmerged" else f", {speedup:.2f}x"
    return f"{short_name(name)}: mIoU {row['miou']:.0f}{faster}"


def _painted(scene: np.ndarray, mask: np.ndarray) -> Image.Image:
    """Return a scene (H, W, 3) with its mask (H, W) over it, a colour a class."""
    colours = np.array([colorsys.hsv_to_rgb(index / 10, 0.85, 1) for index in range(10)])
    shown = DIMMED * scene.astype(float)
    is_digit = mask > 0
    shown[is_digit] += (1 - DIMMED) * 255 * colours[(mask[is_digit] - 1) % 10]
    return _enlarged(shown.clip(0, 255).astype(np.uint8))


def _enlarged(pixels: np.ndarray) -> Image.Image:
    from PIL import Image

    image = Image.fromarray(pixels)
    return image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.NEAREST)

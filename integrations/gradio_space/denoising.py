"""What the page's second tab does, without the page: a digit, drawn by the small diffusion model twice."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

import hf_tome
from hf_tome import MergeConfig
from hf_tome.demo.digits_dit import STEPS, load_digits_dit, make_noise, sample
from hf_tome.demo.digits_pictures import read_digits
from hf_tome.evaluation.metrics.pictures import psnr, ssim

if TYPE_CHECKING:
    from PIL import Image

PLACES = {
    "around self-attention": "attention",
    "around whole blocks": "block",
    "in keys and values alone": "kv",
}
COLUMNS = ["", "tokens", "GFLOPs a step", "PSNR (dB)", "SSIM", "read as"]
LARGEST = 0.75
"""With one destination in a cell of 2x2."""
SHOWN_SIDE = 256
"""Pixels of a picture on the page."""

_lock = threading.Lock()  # merging is switched on and off in a model that all visitors share


@dataclass(frozen=True)
class Drawn:
    """A digit drawn twice from the same noise, and a row of the table for each."""

    unmerged: Image.Image
    merged: Image.Image
    rows: list[list[str]]


@lru_cache(maxsize=1)
def load() -> Any:
    """Load the model that ships with the package."""
    return load_digits_dit()


def draw(digit: int, ratio: float, place: str, seed: int) -> Drawn:
    """Draw a digit from the noise of a seed, unmerged and merged.

    Args:
        digit: 0 to 9.
        ratio: the share of the tokens that merge, 0 to 0.75.
        place: one of `PLACES`.
        seed: of the noise.

    Raises:
        ValueError: something is out of range; the message says what.
    """
    if place not in PLACES:
        raise ValueError(f"Unknown place: {place!r}; it is one of {', '.join(PLACES)}.")
    if digit not in range(10):
        raise ValueError(f"The digit is {digit}; it is one from 0 to 9.")
    config = MergeConfig(ratio=float(ratio), modules=PLACES[place], min_tokens=0, tile=8)
    noise, labels = make_noise([int(seed)]), torch.tensor([int(digit)])
    with _lock:
        model = load()
        try:
            unmerged = sample(model, labels, noise)
            hf_tome.apply(model, config)
            merged = sample(model, labels, noise)
            (tower,) = hf_tome.report(model).towers
        finally:
            hf_tome.remove(model)
    before, after = (tower.levels[0].before, tower.levels[0].after) if tower.levels else (256, 256)
    likeness = [f"{psnr(merged, unmerged).item():.1f}", f"{ssim(merged, unmerged).item():.3f}"]
    rows = [
        ["unmerged", str(before), _number(tower.gflops_unmerged), "", "", str(int(read_digits(unmerged)))],
        [f"{ratio:g} merged", str(after), _number(tower.gflops), *likeness, str(int(read_digits(merged)))],
    ]
    return Drawn(_picture(unmerged[0]), _picture(merged[0]), rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _picture(pixels: torch.Tensor) -> Image.Image:
    from PIL import Image

    small = Image.fromarray((pixels * 255).round().byte().numpy())
    return small.resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.NEAREST)


ABOUT = f"""A diffusion transformer of 0.4 M parameters draws a digit in {STEPS} steps, from the same noise without and
with merging. Tokens merge within each block and are given back behind it, so that the picture keeps its size."""

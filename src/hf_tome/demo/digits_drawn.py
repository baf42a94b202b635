"""The demo of diffusion: digits drawn by the small DiT, unmerged and merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..evaluation.pictures import PictureJob
from .digits_dit import GUIDANCE, NAME, NUM_CLASSES, STEPS, load_digits_dit, make_noise, sample
from .digits_pictures import count_right

if TYPE_CHECKING:
    from PIL import Image

CONFIGS = tuple(
    f"{text},min_tokens=0,tile=8"
    for text in (
        "ratio=0.25",
        "ratio=0.5",
        "ratio=0.7",
        "ratio=0.5,modules=block,every=2",
        "ratio=0.5,modules=block",
        "method=mame,keep_ratio=0.5",
        "method=random_prune,ratio=0.5",
    )
)
"""What `hf-tome demo` compares; 256 tokens are below the usual `min_tokens`."""
PICTURES = 40


def digits_job(count: int = PICTURES, *, seed: int = 0, steps: int = STEPS, device: str = "cpu") -> PictureJob:
    """Return the job that draws digits 0 to 9 in turn, picture i from the noise of seed `seed + i`."""
    model = load_digits_dit(device=device)
    labels = torch.arange(count) % NUM_CLASSES

    def draw(numbers: list[int]) -> list[Image.Image]:
        from PIL import Image

        noise = make_noise([seed + number for number in numbers])
        pictures = sample(model, labels[numbers], noise, steps=steps)
        return [Image.fromarray((picture * 255).round().byte().cpu().numpy()) for picture in pictures]

    def score(pictures: Tensor, numbers: list[int]) -> dict[str, float]:
        return {"right": 100 * count_right(pictures[:, 0], labels[numbers]) / len(numbers)}

    settings = {"seed": seed, "steps": steps, "guidance": GUIDANCE}
    return PictureJob(NAME, model, [str(label) for label in labels.tolist()], draw, score, settings, device)

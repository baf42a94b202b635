"""The small diffusion model that draws digits: how it is loaded, trained to flow, and sampled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..evaluation.data.digits import MODELS

NAME = "digits-dit"
SIDE = 32
"""Pixels of a side; patches of 2 x 2 make 256 tokens of them."""
NUM_CLASSES = 10
TIMESTEPS = 1000
"""What the time of pure noise is called; that of the image is 0."""
STEPS, GUIDANCE = 10, 2.0


def load_digits_dit(folder: str | Path = MODELS / NAME, device: str = "cpu") -> Any:
    """Load the model in float32; its file holds float16."""
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32).eval().to(device)


def make_noise(seeds: list[int]) -> Tensor:
    """Return the noise (B, 1, H, W) of pictures, each drawn from a seed of its own, whatever batch it is in."""
    return torch.cat([torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.inference_mode()
def sample(
    model: Any,
    labels: Tensor,
    noise: Tensor,
    *,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw one picture a label, by Euler's method from noise to image, and return them as (B, H, W) from 0 to 1.

    The model gives the velocity noise - image of the straight way between both (rectified flow). Both halves of
    classifier-free guidance go through it in one batch.

    Args:
        model: of `load_digits_dit`, merged or not.
        labels (`Tensor`): (B,), 0 to 9.
        noise (`Tensor`): (B, 1, H, W).
        steps (`int`): Euler steps.
        guidance (`float`): 1 leaves the second half of the batch out.
        on_step: called with the number of the step and the picture so far.
    """
    pictures = noise.to(next(model.parameters()))
    labels = labels.to(pictures.device)
    times = torch.linspace(1, 0, steps + 1)
    both = torch.cat([labels, torch.full_like(labels, NUM_CLASSES)]) if guidance != 1 else labels
    for step in range(steps):
        inputs = pictures if guidance == 1 else torch.cat([pictures, pictures])
        timestep = (times[step] * TIMESTEPS).expand(len(inputs)).to(pictures)
        velocity = model(inputs, timestep=timestep, class_labels=both).sample
        if guidance != 1:
            wanted, other = velocity.chunk(2)
            velocity = other + guidance * (wanted - other)
        pictures = pictures + (times[step + 1] - times[step]) * velocity
        if on_step is not None:
            on_step(step, pictures)
    return ((pictures[:, 0] + 1) / 2).clamp(0, 1).float()

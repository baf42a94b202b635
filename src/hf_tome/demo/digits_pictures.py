"""Drawn digits: drawing many, and what the shipped classifier reads in them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..evaluation.data.digits import MODEL_DIR
from .digits_dit import make_noise, sample

BATCH = 20


def draw_digits(model: Any, labels: Tensor, *, seed: int = 0, batch_size: int = BATCH, **options: Any) -> Tensor:
    """Return one picture a label, (N, H, W) from 0 to 1; picture i starts from the noise of seed `seed + i`.

    Args:
        model: of `load_digits_dit`, merged or not.
        labels (`Tensor`): (N,), 0 to 9.
        seed (`int`): of the first picture.
        batch_size (`int`): pictures at once.
        options: of `sample`.
    """
    noise = make_noise(list(range(seed, seed + len(labels))))
    parts = zip(labels.split(batch_size), noise.split(batch_size))
    return torch.cat([sample(model, some, start, **options) for some, start in parts])


@cache
def _classifier() -> Any:
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(MODEL_DIR).eval()


@torch.inference_mode()
def read_digits(pictures: Tensor) -> Tensor:
    """Return which digit the shipped classifier reads in each picture, (N, H, W) from 0 to 1 -> (N,)."""
    pixels = (pictures[:, None] * 2 - 1).expand(-1, 3, -1, -1).cpu()
    return torch.cat([_classifier()(batch).logits.argmax(-1) for batch in pixels.split(100)])


def count_right(pictures: Tensor, labels: Tensor) -> int:
    """Return how many pictures the shipped classifier reads as the digit that was asked for."""
    return int((read_digits(pictures) == labels).sum())

"""Questions about pictures of four digits, and their answers."""

from __future__ import annotations

import torch
from torch import Tensor

from .digits_scenes import CORNERS, NAMES

PLURALS = tuple(name + ("es" if name == "six" else "s") for name in NAMES)
QUESTIONS = tuple(
    [f"which digit is {corner}?" for corner in CORNERS] + [f"how many {plural} are there?" for plural in PLURALS]
)
"""All that can be asked about a picture; the answer is one of `NAMES`, a digit or a number of digits."""


def answers(labels: Tensor) -> Tensor:
    """Return the answers (B, questions), indices into `NAMES`, for digits (B, 4) in the order of `CORNERS`."""
    counts = (labels[:, :, None] == torch.arange(len(NAMES))).sum(dim=1)
    return torch.cat([labels, counts], dim=1)


def ask(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Choose a question (B,) for each picture with digits (B, 4), an index into `QUESTIONS`.

    Half ask for a corner; a quarter count a digit that is there, and a quarter any digit.
    """
    count = len(labels)
    draw = torch.rand(count, generator=generator)
    corner = torch.randint(len(CORNERS), (count,), generator=generator)
    present = labels.gather(1, corner[:, None])[:, 0] + len(CORNERS)
    anything = torch.randint(len(NAMES), (count,), generator=generator) + len(CORNERS)
    return torch.where(draw < 0.5, corner, torch.where(draw < 0.75, present, anything))

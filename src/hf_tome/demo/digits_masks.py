"""Scenes of several handwritten digits with a mask of classes: what our small segmentation model is trained on."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .digits_scenes import CELL, DIGIT, NAMES, Look, Material, in_cell, paste

SIDE = 112
"""Height and width of a scene, in pixels: 4 x 4 cells."""
FILLED = 0.6
"""The probability that a cell holds a digit."""
CLASSES = ("background", *NAMES)
COVERED = 0.4
"""The share of a digit from which on a pixel belongs to its mask."""


def make_scenes(
    material: Material, which: Tensor, generator: torch.Generator, side: int = SIDE
) -> tuple[Tensor, Tensor]:
    """Return scenes (B, 3, side, side) of digits and the class of each pixel (B, side, side), 0 for the background.

    The mask of a digit has a margin of about one of the pixels that it is made of, so that it is a whole shape.

    Args:
        material: digits and photographs.
        which: (B,), the index of one digit that each scene holds; the others are drawn at random.
        generator: of positions, sizes, colours and the other digits.
        side: height and width in pixels, a multiple of `CELL`.
    """
    count, per_side = len(which), side // CELL
    cells = per_side**2
    others = torch.randint(len(material.labels), (count, cells), generator=generator)
    is_filled = torch.rand(count, cells, generator=generator) < FILLED
    own = torch.randint(cells, (count, 1), generator=generator)
    others.scatter_(1, own, which[:, None])
    is_filled.scatter_(1, own, True)
    canvas = material.backgrounds(count, side, generator)
    masks = torch.zeros(count, side, side, dtype=torch.long)
    for cell in range(cells):
        look = Look.draw(count, DIGIT, generator)
        centre = in_cell(torch.tensor([cell % per_side, cell // per_side]).expand(count, 2), generator)
        rows = is_filled[:, cell].nonzero()[:, 0]
        if len(rows) == 0:
            continue
        drawn = Look(*(value[rows] for value in vars(look).values()))
        indices = others[rows, cell]
        canvas[rows], _ = paste(canvas[rows], material.digits[indices], centre[rows], drawn)
        inside = _shape(material.digits[indices], centre[rows], drawn, side) > COVERED
        classes = material.labels[indices][:, None, None] + 1
        masks[rows] = torch.where(inside, classes, masks[rows])
    return canvas, masks


def _shape(ink: Tensor, centre: Tensor, look: Look, side: int) -> Tensor:
    """Return how much of a digit (B, 1, 8, 8), grown by one of its pixels, covers each pixel (B, side, side)."""
    size = ink.shape[-1]
    grown = F.max_pool2d(F.pad(ink, (1, 1, 1, 1)), 3, stride=1, padding=1)  # (B, 1, 10, 10)
    larger = replace(look, side=look.side * (size + 2) / size)
    _, alpha = paste(torch.zeros(len(ink), 3, side, side), grown, centre, larger)
    return alpha[:, 0]

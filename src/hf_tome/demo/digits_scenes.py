"""Scenes of handwritten digits on photographs, still and moving: what our small models are trained on.

The digits and both photographs come with scikit-learn. Held-out digits stand on a part of the photographs that
training never shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.data import digits

MEAN, STD = 0.5, 0.5
"""The models take (pixel - MEAN) / STD, with pixels from 0 to 1."""
SIDE = 56
"""Height and width of a picture, in pixels."""
CELL = 28
"""A picture has 2 x 2 cells of this side, and a digit stands near the middle of one, up to JITTER pixels off."""
JITTER = 3.0
DIGIT = (19.0, 23.0)
"""Smallest and largest side of the square that a digit fills, in pixels."""
CLIP_SIDE = 28
CLIP_FRAMES = 16
CLIP_DIGIT = (17.0, 20.0)
TRAVEL = (0.4, 0.6)
"""Pixels that a moving digit goes from frame to frame."""
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Steps in x (to the right) and y (downwards)."""
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CORNERS = ("top left", "top right", "bottom left", "bottom right")

TILT = math.radians(12)
DARK = 0.45
"""Photographs are darkened to this share, so that a digit is brighter than what is behind it."""
SHRINK = 2
"""Photographs are shrunk so many times, for more texture in a small window."""
TRAIN_SHARE = 0.7
"""The left part of each photograph is for training, the rest for held-out digits."""


@dataclass(frozen=True)
class Material:
    """What scenes of one split are made of: digits (N, 1, 8, 8), their labels (N,), photographs (3, H, W); 0 to 1."""

    digits: Tensor
    labels: Tensor
    photographs: list[Tensor]

    def backgrounds(self, count: int, side: int, generator: torch.Generator) -> Tensor:
        """Cut windows (count, 3, side, side) out of the photographs."""
        windows = []
        for which in torch.randint(len(self.photographs), (count,), generator=generator).tolist():
            photograph = _widened(self.photographs[which], side)
            top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in photograph.shape[1:])
            windows.append(photograph[:, top : top + side, left : left + side])
        return DARK * torch.stack(windows)


def _widened(photograph: Tensor, side: int) -> Tensor:
    """Return a photograph (3, H, W) at least `side` wide; a narrower one goes on mirrored."""
    return photograph if photograph.shape[2] >= side else torch.cat([photograph, photograph.flip(2)], dim=2)


def load_material(split: str = "test") -> Material:
    """Return the digits of a split (see `digits.load_digits`) and its part of the photographs."""
    from sklearn.datasets import load_sample_images

    rows = digits.load_digits(split)
    pixels = np.stack([np.asarray(image.convert("L")) for image in rows["image"]])
    photographs = []
    for image in load_sample_images().images:
        whole = torch.tensor(image).permute(2, 0, 1).float() / 255  # (H, W, 3) -> (3, H, W)
        small = F.avg_pool2d(whole, SHRINK)
        edge = int(small.shape[2] * TRAIN_SHARE)
        photographs.append(small[:, :, :edge] if split == "train" else small[:, :, edge:])
    return Material(torch.tensor(pixels)[:, None].float() / 255, torch.tensor(rows["label"]), photographs)


def uniform(low: float, high: float, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw uniformly between two bounds."""
    return low + (high - low) * torch.rand(*shape, generator=generator)


@dataclass(frozen=True)
class Look:
    """How digits are drawn: side in pixels (B,), tilt in radians (B,), stretch (B,), colour (B, 3)."""

    side: Tensor
    tilt: Tensor
    stretch: Tensor
    colour: Tensor

    @classmethod
    def draw(cls, count: int, sides: tuple[float, float], generator: torch.Generator) -> Look:
        """Draw sizes, tilts and bright colours at random."""
        return cls(
            uniform(*sides, (count,), generator),
            uniform(-TILT, TILT, (count,), generator),
            uniform(0.85, 1.15, (count,), generator),
            uniform(0.7, 1.0, (count, 3), generator),
        )

    def repeated(self, times: int) -> Look:
        """Repeat each row, for the frames of a clip."""
        return Look(
            *(value.repeat_interleave(times, 0) for value in (self.side, self.tilt, self.stretch, self.colour))
        )


def paste(canvas: Tensor, ink: Tensor, centre: Tensor, look: Look) -> tuple[Tensor, Tensor]:
    """Draw one digit into each picture; return the pictures and where the digit's colour is (B, 1, S, S), 0 to 1.

    Args:
        canvas: (B, 3, S, S), 0 to 1.
        ink: (B, 1, 8, 8), how much of the digit's colour there is.
        centre: (B, 2), x and y in pixels.
    """
    side = canvas.shape[-1]
    # affine_grid maps the output's coordinates (-1 to 1) to the input's: x_in = A (x_out - centre).
    ratio = side / look.side
    cos, sin = look.tilt.cos() * ratio, look.tilt.sin() * ratio
    matrix = torch.stack([cos / look.stretch, -sin, sin, cos * look.stretch], 1).view(-1, 2, 2)
    shift = -(matrix @ (2 * centre / side - 1)[..., None])
    grid = F.affine_grid(torch.cat([matrix, shift], 2), [len(canvas), 1, side, side], align_corners=False)
    alpha = F.grid_sample(ink, grid, align_corners=False)  # (B, 1, S, S), 0 outside the digit
    return canvas * (1 - alpha) + look.colour[:, :, None, None] * alpha, alpha


def make_pictures(
    material: Material, which: Tensor, generator: torch.Generator, side: int = SIDE
) -> tuple[Tensor, Tensor]:
    """Return pictures (B, 3, side, side) of one digit each, in one of the cells that `side` has room for, and where.

    Args:
        which: (B,), the indices of the digits.
    """
    look = Look.draw(len(which), DIGIT, generator)
    cell = torch.randint(side // CELL, (len(which), 2), generator=generator)
    return paste(
        material.backgrounds(len(which), side, generator), material.digits[which], in_cell(cell, generator), look
    )


def in_cell(cell: Tensor, generator: torch.Generator) -> Tensor:
    """Return points (B, 2) near the middle of cells, column and row (B, 2), in pixels."""
    return (cell + 0.5) * CELL + uniform(-JITTER, JITTER, cell.shape, generator)


def make_quartets(material: Material, which: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return pictures (B, 3, SIDE, SIDE) of the digits at the indices (B, 4), in the order of `CORNERS`, and where."""
    inked, canvas = torch.zeros(()), material.backgrounds(len(which), SIDE, generator)
    for corner in range(4):
        look = Look.draw(len(which), DIGIT, generator)
        cell = torch.tensor([corner % 2, corner // 2]).expand(len(which), 2)
        centre = in_cell(cell, generator)
        canvas, alpha = paste(canvas, material.digits[which[:, corner]], centre, look)
        inked = inked + alpha
    return canvas, inked


def make_clips(
    material: Material, which: Tensor, directions: Tensor, generator: torch.Generator, frames: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Return clips (B, T, 3, CLIP_SIDE, CLIP_SIDE) of one moving digit each, and where it is.

    Args:
        directions: (B,), indices into `DIRECTIONS`.
        frames: the frames to draw, of `CLIP_FRAMES`; by default all.
    """
    count, times = len(which), torch.tensor(list(frames) or range(CLIP_FRAMES)).float()
    look = Look.draw(count, CLIP_DIGIT, generator)
    step = torch.tensor(list(DIRECTIONS.values()))[directions] * uniform(*TRAVEL, (count, 1), generator)
    middle = CLIP_SIDE / 2 + uniform(-1, 1, (count, 2), generator)
    offset = (times - (CLIP_FRAMES - 1) / 2)[None, :, None] * step[:, None]  # (B, T, 2)
    centre = (middle[:, None] + offset).flatten(0, 1)
    repeat = len(times)
    canvas = material.backgrounds(count, CLIP_SIDE, generator).repeat_interleave(repeat, 0)
    drawn, inked = paste(canvas, material.digits[which].repeat_interleave(repeat, 0), centre, look.repeated(repeat))
    return drawn.unflatten(0, (count, repeat)), inked.unflatten(0, (count, repeat))


def to_bytes(pictures: Tensor) -> np.ndarray:
    """Return pictures or frames (..., 3, H, W), 0 to 1, as `uint8` (..., H, W, 3)."""
    return (pictures.movedim(-3, -1) * 255).round().to(torch.uint8).numpy()


def clip_names() -> list[str]:
    """Return what the classes of clips are called, in the order of `clip_label`."""
    return [f"{name} moving {direction}" for name in NAMES for direction in DIRECTIONS]


def clip_label(labels: Tensor, directions: Tensor) -> Tensor:
    """Return the classes (B,) of digits that move in directions, (B,) each."""
    return labels * len(DIRECTIONS) + directions

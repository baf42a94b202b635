"""What all pictures of tokens share: the mean colour of each token, borders, and hatches where it was pruned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..adapters.encoders.families.inputs import TokenGrid

if TYPE_CHECKING:
    from PIL import Image

PRUNED = -1
"""The source of a patch that no token holds any more."""

_SEED = 0
_OUTSIDE = -2  # differs from every patch and from PRUNED, so that a token is bordered at the picture's edge too
_BORDER = 14  # a border is as wide as this part of a patch


def draw_tokens(pixels: np.ndarray, owner: np.ndarray, grid: TokenGrid, scale: int, border: bool) -> np.ndarray:
    """Fill each token with its mean colour over all frames, and border it.

    Args:
        pixels: (frames, H, W, 3), float; every step takes `grid.tubelet` frames.
        owner: (steps, rows, columns), see `owners`.

    Returns:
        (steps, H, W, 3), float.
    """
    starts = grid.starts((pixels.shape[1], pixels.shape[2]), scale)
    sums = np.add.reduceat(np.add.reduceat(pixels, starts[0], axis=1), starts[1], axis=2)  # (frames, rows, columns, 3)
    sums = sums.reshape(grid.steps, grid.tubelet, grid.rows, grid.columns, 3).sum(axis=1).reshape(-1, 3)
    heights, widths = (np.diff(start, append=end) for start, end in zip(starts, pixels.shape[1:3]))
    areas = np.broadcast_to(heights[:, None] * widths * grid.tubelet, owner.shape).ravel()
    slot, held = np.where(owner == PRUNED, 0, owner).ravel(), owner.ravel() != PRUNED  # pruned pixels weigh nothing
    count = np.bincount(slot, held * areas, grid.patches)
    totals = np.stack([np.bincount(slot, held * sums[:, c], grid.patches) for c in range(3)], axis=1)
    colours = (totals / np.maximum(count, 1)[:, None])[slot].reshape(*owner.shape, 3)
    drawn, of_pixel = spread(colours, grid, scale, pixels.shape), spread(owner, grid, scale, pixels.shape)
    if border:
        patch = min(pixels.shape[1] / grid.rows, pixels.shape[2] / grid.columns)
        edges = mark_edges(of_pixel, width=max(1, round(patch / _BORDER)))
        drawn[edges] = palette(grid.patches)[of_pixel[edges]]
    return hatch(drawn, of_pixel == PRUNED)


def owners(source: torch.Tensor, grid: TokenGrid) -> np.ndarray:
    """Return for each patch the first patch of the token that holds it, or `PRUNED`, (steps, rows, columns).

    The first patch names the token because it stays the same while the token grows, and so does its colour.

    Raises:
        ValueError: `source` does not fit the grid, or holds no token numbers.
    """
    source = torch.as_tensor(source).detach().cpu()
    if source.dim() != 1 or source.numel() != grid.patches:
        steps = f"{grid.steps} x " if grid.steps > 1 else ""
        raise ValueError(
            f"`source` has shape {tuple(source.shape)}, but a grid of {steps}{grid.rows} x {grid.columns} has "
            f"{grid.patches} patches. Pass one entry a patch of one image, without the special tokens."
        )
    if source.is_floating_point() or int(source.min()) < PRUNED:
        raise ValueError(
            f"`source` holds {source.dtype} from {source.min()}; it takes token numbers, or -1 for pruned."
        )
    tokens, first, inverse = np.unique(source.numpy(), return_index=True, return_inverse=True)
    return np.where(tokens == PRUNED, PRUNED, first)[inverse].reshape(grid.steps, grid.rows, grid.columns)


def count_tokens(source: torch.Tensor) -> int:
    """Return how many tokens hold any patch."""
    source = torch.as_tensor(source)
    return source[source != PRUNED].unique().numel()


def read_pixels(image: Image.Image, grid: TokenGrid, scale: int) -> np.ndarray:
    """Return an image, enlarged, as (H, W, 3) of `float64`.

    Raises:
        ValueError: it has fewer pixels than patches.
    """
    if image.height < grid.rows or image.width < grid.columns:
        raise ValueError(
            f"The image is {image.width} x {image.height} pixels, smaller than one pixel for each of the "
            f"{grid.columns} x {grid.rows} patches. Pass the picture that the model saw; `model_view` makes it."
        )
    size = (image.width * scale, image.height * scale)
    return np.asarray(image.convert("RGB").resize(size, resample=0), dtype=np.float64)


def spread(values: np.ndarray, grid: TokenGrid, scale: int, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat values (steps, rows, columns, ...) of patches over their pixels, (steps, H, W, ...)."""
    for axis, start in enumerate(grid.starts((shape[1], shape[2]), scale), start=1):
        values = np.repeat(values, np.diff(start, append=shape[axis]), axis=axis)
    return values


def mark_edges(owner: np.ndarray, width: int) -> np.ndarray:
    """Mark the pixels (steps, H, W) within `width` of another token's; those that nobody holds have no border."""
    height, length = owner.shape[1:]
    padded = np.pad(owner, ((0, 0), (width, width), (width, width)), constant_values=_OUTSIDE)
    edges = np.zeros(owner.shape, dtype=bool)
    for step in range(-width, width + 1):
        edges |= padded[:, width + step : width + step + height, width : width + length] != owner
        edges |= padded[:, width : width + height, width + step : width + step + length] != owner
    return edges & (owner != PRUNED)


def palette(count: int) -> np.ndarray:
    """Return `count` distinct strong colours in a seeded random order, (count, 3)."""
    index = np.arange(1, count + 1)[:, None]
    # Multiples of powers of the inverse plastic ratio fill the cube of hue, saturation and value evenly (R3 sequence).
    hue, saturation, value = (index * 1.2207440846 ** -np.arange(1.0, 4.0) % 1).T
    saturation, value = 0.6 + 0.4 * saturation, 0.55 + 0.45 * value
    phase = (np.array([5, 3, 1]) + 6 * hue[:, None]) % 6  # HSV to RGB: v - v s max(0, min(k, 4 - k, 1))
    fall = np.clip(np.minimum(phase, 4 - phase), 0, 1)
    colours = 255 * value[:, None] * (1 - saturation[:, None] * fall)
    return np.random.default_rng(_SEED).permutation(colours)


def hatch(drawn: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    """Draw grey stripes on black over the pruned pixels (..., H, W) of pictures (..., H, W, 3)."""
    if not pruned.any():
        return drawn
    height, width = pruned.shape[-2:]
    stripes = (np.arange(height)[:, None] + np.arange(width)) % 8 < 2
    return np.where(pruned[..., None], np.where(stripes[..., None], 90.0, 0.0), drawn)


def to_image(pixels: np.ndarray) -> Image.Image:
    """Return an image from (H, W, 3) of numbers from 0 to 255."""
    from PIL import Image

    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))

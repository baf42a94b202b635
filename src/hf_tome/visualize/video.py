"""Pictures of a clip's tokens, as in ToMe's figures 6 and 9: one token keeps its colour and border in all frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..adapters.encoders.families.inputs import TokenGrid
from .drawing import PRUNED, draw_tokens, mark_edges, owners, read_pixels, spread, to_image

if TYPE_CHECKING:
    from PIL import Image

RED = (255.0, 30.0, 30.0)
"""Of the token that is followed, as in figure 6."""

_OBJECT = 0.25  # of a frame: what covers more is background rather than an object
_DIMMED = 0.45  # what is left of the brightness around the token that is followed


def merged_frames(
    frames: Sequence[Image.Image], source: torch.Tensor, grid: TokenGrid, *, border: bool = True, scale: int = 1
) -> list[Image.Image]:
    """Draw each token as the mean colour of its patches in all frames, one picture a step of `grid.tubelet` frames.

    Args:
        frames: `grid.frames` pictures of one size, as the model saw them (see `model_frames`).
        source: (steps * rows * columns,), the token that holds each patch, or -1 where it was pruned.
        grid: steps, rows and columns of patches.
        border: border each token in a colour of its own, the same in all frames.
        scale: enlarge the frames so many times before they are drawn on.

    Raises:
        ValueError: frames, `source` and grid do not fit.
    """
    owner, pixels = owners(source, grid), _read_frames(frames, grid, scale)
    return [to_image(drawn) for drawn in draw_tokens(pixels, owner, grid, scale, border)]


def followed_frames(
    frames: Sequence[Image.Image],
    source: torch.Tensor,
    grid: TokenGrid,
    token: int | None = None,
    *,
    scale: int = 1,
) -> list[Image.Image]:
    """Draw the first frame of each step, all of it dimmed but one token, which is bordered in red (ToMe, figure 9).

    Args:
        frames, source, grid, scale: as in `merged_frames`.
        token: a number in `source`; by default `moving_token`.

    Raises:
        ValueError: frames, `source` and grid do not fit, or no patch is held by `token`.
    """
    source = torch.as_tensor(source).cpu()
    owner, pixels = owners(source, grid), _read_frames(frames, grid, scale)[:: grid.tubelet]
    token = moving_token(source, grid) if token is None else token
    first = (source == token).nonzero()
    if not len(first):
        raise ValueError(f"No patch is held by the token {token}; `token` takes one of the numbers in `source`.")
    held = spread(owner == int(first[0]), grid, scale, pixels.shape)
    grey = pixels @ np.array([0.299, 0.587, 0.114]) * _DIMMED  # (steps, H, W, 3) -> (steps, H, W), ITU-R BT.601
    drawn = np.where(held[..., None], pixels, grey[..., None])
    patch = min(pixels.shape[1] / grid.rows, pixels.shape[2] / grid.columns)
    drawn[mark_edges(np.where(held, 0, PRUNED), width=max(1, round(patch / 7)))] = RED
    return [to_image(picture) for picture in drawn]


def token_at(source: torch.Tensor, grid: TokenGrid, size: tuple[int, int], x: int, y: int, frame: int = 0) -> int:
    """Return the token that holds a pixel of a frame.

    Args:
        source, grid: as in `merged_frames`.
        size: width and height of the frames.

    Raises:
        ValueError: `source` does not fit the grid, the pixel lies outside, or its patch was pruned.
    """
    width, height = size
    if not (0 <= x < width and 0 <= y < height and 0 <= frame < grid.frames):
        raise ValueError(
            f"The pixel ({x}, {y}) of frame {frame} lies outside: the model sees {grid.frames} frames of {width} x "
            f"{height} pixels, counted from 0."
        )
    starts = grid.starts((height, width))
    row, column = (int(np.searchsorted(start, place, "right")) - 1 for start, place in zip(starts, (y, x)))
    owners(source, grid)  # checks the source
    token = int(torch.as_tensor(source).view(grid.steps, grid.rows, grid.columns)[frame // grid.tubelet, row, column])
    if token == PRUNED:
        raise ValueError(f"The patch at ({x}, {y}) of frame {frame} was pruned, so no token can be followed from it.")
    return token


def moving_token(source: torch.Tensor, grid: TokenGrid) -> int:
    """Return the token most like an object that moves: in most frames, smaller than a quarter of each, moving far.

    Among tokens in as many frames the one wins whose centre moves furthest from where it first was; without any small
    token the size does not count.

    Raises:
        ValueError: `source` does not fit the grid, or every patch was pruned.
    """
    owner, held = owners(source, grid), np.asarray(torch.as_tensor(source).cpu()).reshape(grid.steps, -1)
    names, flat = np.unique(owner[owner != PRUNED]), owner.reshape(grid.steps, -1)
    if not len(names):
        raise ValueError("Every patch was pruned, so there is no token to follow.")
    index = np.searchsorted(names, flat)  # pruned patches come out as 0, and weigh nothing
    weight = (flat != PRUNED).astype(float)
    slot = np.arange(grid.steps)[:, None] * len(names) + np.minimum(index, len(names) - 1)
    row, column = (place.ravel() for place in np.indices(owner.shape[1:]))

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(slot.ravel(), (weight * values).ravel(), grid.steps * len(names)).reshape(grid.steps, -1)

    size = total(np.ones_like(weight))  # (steps, tokens)
    seen = size > 0
    centres = np.stack([total(np.broadcast_to(place, flat.shape)) for place in (row, column)], axis=-1)
    centres = np.where(seen[..., None], centres / np.maximum(size, 1)[..., None], np.nan)
    starts = centres[seen.argmax(axis=0), np.arange(len(names))]  # (tokens, 2)
    moved = np.nan_to_num(np.linalg.norm(centres - starts, axis=-1)).max(axis=0)
    small = size.max(axis=0) <= _OBJECT * grid.rows * grid.columns
    best = max(range(len(names)), key=lambda token: (small[token], seen[:, token].sum(), moved[token]))
    return int(held.ravel()[names[best]])


def _read_frames(frames: Sequence[Image.Image], grid: TokenGrid, scale: int) -> np.ndarray:
    """Return the frames, enlarged, as (frames, H, W, 3).

    Raises:
        ValueError: they are not as many as the grid takes, or of several sizes.
    """
    sizes = {frame.size for frame in frames}
    if len(frames) != grid.frames or len(sizes) != 1:
        raise ValueError(
            f"There are {len(frames)} frames of {len(sizes)} sizes; {grid.steps} steps of {grid.tubelet} frames take "
            f"{grid.frames} of one size."
        )
    return np.stack([read_pixels(frame, grid, scale) for frame in frames])

"""The grid of tokens that a denoiser makes of its latents, from the model and its arguments by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .rows import Grid

Arguments = Mapping[str, Any]


def unet(model: Any, arguments: Arguments) -> Grid:
    """Latents (B, C, H, W) of a UNet, whose deeper levels halve them."""
    height, width = arguments["sample"].shape[-2:]
    return Grid((height, width), height * width, halves=True)


def patches(model: Any, arguments: Arguments) -> Grid:
    """Latents (..., H, W) in square patches."""
    height, width = (side // model.config.patch_size for side in arguments["hidden_states"].shape[-2:])
    return Grid((height, width), height * width)


def video(model: Any, arguments: Arguments) -> Grid:
    """Latents (B, C, F, H, W) in patches of (F, H, W), or of square patches of some frames."""
    sizes = model.config.patch_size
    if isinstance(sizes, int):
        sizes = (getattr(model.config, "patch_size_t", None) or 1, sizes, sizes)
    shape = tuple(side // size for side, size in zip(arguments["hidden_states"].shape[-3:], sizes))
    return Grid(shape, math.prod(shape))


def frames_first(model: Any, arguments: Arguments) -> Grid:
    """Latents (B, F, C, H, W) in square patches of some frames."""
    frames, _, height, width = arguments["hidden_states"].shape[-4:]
    size, together = model.config.patch_size, getattr(model.config, "patch_size_t", None) or 1
    shape = (-(-frames // together), height // size, width // size)
    return Grid(shape, math.prod(shape))


def packed_by_ids(model: Any, arguments: Arguments) -> Grid:
    """Packed latents (B, S, C) with ids (S, 3 or more), of which columns 1 and 2 are row and column, 0 the image."""
    ids = arguments["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    stream = arguments["hidden_states"].shape[1]
    own = _own_tokens(ids)
    height = int(ids[:own, 1].max()) + 1
    return Grid((height, own // height), stream)


def _own_tokens(ids: Tensor) -> int:
    """Return how many tokens there are before those of reference images, which have another number in column 0."""
    others = (ids[:, 0] != ids[0, 0]).nonzero()
    return int(others[0, 0]) if len(others) else ids.shape[0]


def packed_by_shapes(model: Any, arguments: Arguments) -> Grid:
    """Packed latents (B, S, C) with the shape (frames, height, width) of each image, the own one first."""
    shapes = arguments["img_shapes"][0]
    shape = tuple(shapes[0]) if isinstance(shapes, list) else tuple(shapes)
    return Grid(shape, arguments["hidden_states"].shape[1])


def packed_by_numbers(model: Any, arguments: Arguments) -> Grid:
    """Packed latents (B, S, C), with the number of frames, height and width beside them."""
    shape = tuple(int(arguments[name]) for name in ("num_frames", "height", "width"))
    return Grid(shape, math.prod(shape))


def listed(model: Any, arguments: Arguments) -> Grid:
    """A list of latents (C, F, H, W), all of one size, each filled up to a multiple of 32 tokens (Z-Image)."""
    shapes = {tuple(latents.shape[1:]) for latents in arguments["x"]}
    if len(shapes) > 1:
        raise ValueError(
            f"Images of several sizes, {sorted(shapes)}, cannot merge in one batch; pass them one by one."
        )
    frames, height, width = shapes.pop()
    size = arguments.get("patch_size") or 2
    shape = (frames // (arguments.get("f_patch_size") or 1), height // size, width // size)
    return Grid(shape, -(-math.prod(shape) // 32) * 32)

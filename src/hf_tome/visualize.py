"""Pictures of merged tokens: which patches went together, how large each token is, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL import Image

PRUNED = -1
"""The source of a patch that no token holds any more."""

_SEED = 0
_OUTSIDE = -2  # differs from every patch and from PRUNED, so that a token is bordered at the picture's edge too
_READABLE_PATCH = 12  # pixels; below this a border covers too much of a patch
_READABLE_SIDE = 192  # pixels; below this a label does not fit over a picture


def merged_image(
    image: Image.Image, source: torch.Tensor, grid: tuple[int, int], *, border: bool = True, scale: int = 1
) -> Image.Image:
    """Draw each token as the mean colour of its patches, bordered in a colour of its own (ToMe, appendix E, figure 4).

    Args:
        image: the picture as the model saw it (see `model_view`), covered by the patches from edge to edge.
        source: (rows * columns,), the token that holds each patch, or -1 where it was pruned; no special tokens.
        grid: rows and columns of patches.
        border: draw the borders. A token keeps its border colour from block to block.
        scale: enlarge the picture so many times before it is drawn on, for small patches.

    Raises:
        ValueError: `source` does not fit the grid, or the image has fewer pixels than patches.
    """
    pixels, owner = _prepare(image, source, grid, scale)
    # The mean of each channel over all pixels of a token; pruned pixels weigh nothing, wherever they are counted.
    slot = np.where(owner < 0, 0, owner).ravel()
    held = (owner >= 0).ravel().astype(np.float64)
    count = np.bincount(slot, held, minlength=grid[0] * grid[1])
    sums = np.stack([np.bincount(slot, held * pixels[..., c].ravel(), len(count)) for c in range(3)], axis=1)
    colours = sums / np.maximum(count, 1)[:, None]
    drawn = colours[slot].reshape(pixels.shape)  # (H*W, 3) -> (H, W, 3)
    if border:
        edges = _edges(owner, width=max(1, round(min(pixels.shape[0] / grid[0], pixels.shape[1] / grid[1]) / 14)))
        drawn[edges] = _palette(grid[0] * grid[1])[np.where(owner < 0, 0, owner)[edges]]
    return _to_image(_hatch(drawn, owner == PRUNED))


def size_heatmap(
    size_per_patch: torch.Tensor, grid: tuple[int, int], image: Image.Image, *, legend: bool = True, scale: int = 1
) -> Image.Image:
    """Draw over a grey picture how many patches the token of each patch holds, in logarithmic colours.

    Args:
        size_per_patch: (rows * columns,), the size of the token that holds each patch, 0 where it was pruned.
        grid: rows and columns of patches.
        legend: add a bar of the colours on the right.

    Raises:
        ValueError: `size_per_patch` does not fit the grid or is negative, or the image has fewer pixels than patches.
    """
    from matplotlib import colormaps

    size = torch.as_tensor(size_per_patch).detach().cpu().double()
    if not bool((size >= 0).all()):
        raise ValueError("`size_per_patch` has entries below 0 or NaN; it takes the size of each patch's token.")
    patches = torch.arange(size.numel())
    pixels, owner = _prepare(image, patches.where(size.flatten() > 0, PRUNED).view(size.shape), grid, scale)
    shade = colormaps["viridis"]
    level = np.log(np.maximum(size.numpy(), 1)) / np.log(
        max(float(size.max()), 2)
    )  # 0 for a lone patch, 1 for the largest
    grey = pixels @ np.array([0.299, 0.587, 0.114])  # (H, W, 3) -> (H, W), ITU-R BT.601
    heat = 255 * shade(level)[:, :3][np.where(owner < 0, 0, owner)]
    drawn = _to_image(_hatch(0.35 * grey[..., None] + 0.65 * heat, owner == PRUNED))
    return _with_legend(drawn, shade, float(size.max())) if legend else drawn


def progression(
    image: Image.Image,
    sources: Sequence[torch.Tensor],
    grid: tuple[int, int],
    *,
    blocks: Sequence[int] | None = None,
    columns: int = 4,
    border: bool = True,
) -> Image.Image:
    """Draw the picture and its tokens after one block after the other, with their number (as MaMe, figure 1).

    Args:
        sources: for each block shown, the token that holds each patch, as `merged_image` takes it.
        blocks: the blocks' numbers for the labels, counted from 0; by default 0, 1, 2, ...

    Raises:
        ValueError: there is no source, `blocks` has another length, or a source does not fit the grid.
    """
    blocks = range(len(sources)) if blocks is None else blocks
    if not sources or len(blocks) != len(sources):
        raise ValueError(
            f"`sources` has {len(sources)} entries and `blocks` {len(blocks)}; they take one each a block."
        )
    scale = readable_scale(image, grid)
    first = image.convert("RGB").resize((image.width * scale, image.height * scale), resample=0)
    pictures = [merged_image(image, source, grid, border=border, scale=scale) for source in sources]
    kept = [torch.as_tensor(source)[torch.as_tensor(source) != PRUNED].unique().numel() for source in sources]
    labels = [f"block {block}: {tokens} tokens" for block, tokens in zip(blocks, kept)]
    return contact_sheet([first, *pictures], columns, ["input", *labels])


def contact_sheet(
    images: Sequence[Image.Image], columns: int | None = None, labels: Sequence[str] | None = None, *, gap: int = 6
) -> Image.Image:
    """Put pictures side by side in rows of `columns` (by default one row), each under its label, on white.

    Raises:
        ValueError: there is no picture, `columns` is not positive, or there is not one label a picture.
    """
    from PIL import Image, ImageDraw

    images = list(images)
    columns = len(images) if columns is None else columns
    if not images or columns < 1:
        raise ValueError(f"A contact sheet takes at least 1 picture and 1 column; got {len(images)} and {columns}.")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"`labels` has {len(labels)} entries for {len(images)} pictures; give one each.")
    columns = min(columns, len(images))
    width, height = max(image.width for image in images), max(image.height for image in images)
    text = 0 if labels is None else max(14, width // 18)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + text + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = gap + index % columns * (width + gap), gap + index // columns * (height + text + gap)
        sheet.paste(image.convert("RGB"), (left, top + text))
        if labels is not None:
            draw.text((left, top), labels[index], fill="black", font=_font(text * 3 // 4))
    return sheet


def readable_scale(image: Image.Image, grid: tuple[int, int]) -> int:
    """Return the smallest whole enlargement with which patches are larger than their borders and labels fit."""
    patch, side = min(image.height / grid[0], image.width / grid[1]), min(image.size)
    return max(1, math.ceil(_READABLE_PATCH / patch), math.ceil(_READABLE_SIDE / side))


def model_view(image: Image.Image, processor: Any) -> Image.Image:
    """Return the picture as an image processor resized and cropped it, so that the model's patches line up with it.

    Args:
        processor: an image processor, or a processor that holds one.

    Raises:
        ValueError: what the processor returns is not one picture.
    """
    processor = getattr(processor, "image_processor", processor)
    inputs = processor(images=image.convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="pt")
    values = inputs["pixel_values"][0].float()
    if "spatial_shapes" in inputs:
        values = _unpatch(values, *inputs["spatial_shapes"][0].tolist())
    if values.dim() != 3 or values.shape[0] not in (1, 3):
        raise ValueError(
            f"{type(processor).__name__} returns pixel values of shape {tuple(values.shape)} for an image; supported "
            "are (channels, height, width) and SigLIP 2's patches. Crop the image yourself as the model sees it."
        )
    return _to_image(values.expand(3, -1, -1).permute(1, 2, 0).numpy())  # (C, H, W) -> (H, W, 3)


def _unpatch(patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    side = int((patches.shape[-1] / 3) ** 0.5)
    grid = patches[: rows * columns].view(rows, columns, side, side, 3)  # the rest is padding
    return grid.permute(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)  # -> (C, H, W)


def _prepare(
    image: Image.Image, source: torch.Tensor, grid: tuple[int, int], scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels (H, W, 3) and, for each pixel, the first patch of the token that holds it (H, W)."""
    rows, columns = grid
    source = torch.as_tensor(source).detach().cpu()
    if rows < 1 or columns < 1:
        raise ValueError(
            f"`grid` is {grid}; it takes the rows and columns of patches. Tokens without a grid cannot be drawn."
        )
    if source.dim() != 1 or source.numel() != rows * columns:
        raise ValueError(
            f"`source` has shape {tuple(source.shape)}, but a grid of {rows} x {columns} has {rows * columns} patches."
            " Pass one entry a patch of one image, without the special tokens."
        )
    if image.height < rows or image.width < columns:
        raise ValueError(
            f"The image is {image.width} x {image.height} pixels, smaller than one pixel for each of the {columns} x "
            f"{rows} patches. Pass the picture that the model saw; `model_view` makes it."
        )
    if source.is_floating_point() or int(source.min()) < PRUNED:
        raise ValueError(
            f"`source` holds {source.dtype} from {source.min()}; it takes token numbers, or -1 for pruned."
        )
    size = (image.width * scale, image.height * scale)
    pixels = np.asarray(image.convert("RGB").resize(size, resample=0), dtype=np.float64)
    tokens, first, inverse = np.unique(source.numpy(), return_index=True, return_inverse=True)
    # A token is named by its first patch, which stays the same while it grows, and so does its colour.
    owner = np.where(tokens == PRUNED, PRUNED, first)[inverse].reshape(rows, columns)
    row = np.arange(size[1]) * rows // size[1]
    column = np.arange(size[0]) * columns // size[0]
    return pixels, owner[row[:, None], column]


def _edges(owner: np.ndarray, width: int) -> np.ndarray:
    """Mark the pixels within `width` of another token's, (H, W); those that nobody holds have no border."""
    height, length = owner.shape
    padded = np.pad(owner, width, constant_values=_OUTSIDE)
    edges = np.zeros(owner.shape, dtype=bool)
    for step in range(-width, width + 1):
        edges |= padded[width + step : width + step + height, width : width + length] != owner
        edges |= padded[width : width + height, width + step : width + step + length] != owner
    return edges & (owner != PRUNED)


def _palette(count: int) -> np.ndarray:
    """Return `count` distinct strong colours in a seeded random order, (count, 3)."""
    index = np.arange(1, count + 1)[:, None]
    # Multiples of powers of the inverse plastic ratio fill the cube of hue, saturation and value evenly (R3 sequence).
    hue, saturation, value = (index * 1.2207440846 ** -np.arange(1.0, 4.0) % 1).T
    saturation, value = 0.6 + 0.4 * saturation, 0.55 + 0.45 * value
    phase = (np.array([5, 3, 1]) + 6 * hue[:, None]) % 6  # HSV to RGB: v - v s max(0, min(k, 4 - k, 1))
    fall = np.clip(np.minimum(phase, 4 - phase), 0, 1)
    colours = 255 * value[:, None] * (1 - saturation[:, None] * fall)
    return np.random.default_rng(_SEED).permutation(colours)


def _hatch(drawn: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    height, width = pruned.shape
    stripes = (np.arange(height)[:, None] + np.arange(width)) % 8 < 2
    return np.where(pruned[..., None], np.where(stripes[..., None], 90.0, 0.0), drawn)


def _with_legend(image: Image.Image, shade: Any, largest: float) -> Image.Image:
    from PIL import Image, ImageDraw

    bar, text = max(8, image.width // 24), max(12, image.height // 18)
    drawn = Image.new("RGB", (image.width + 2 * bar + 3 * text, image.height), "white")
    drawn.paste(image, (0, 0))
    levels = np.linspace(1, 0, image.height)[:, None]
    colours = _to_image(255 * shade(levels)[..., :3])  # (H, 1, 3), the largest on top
    drawn.paste(colours.resize((bar, image.height)), (image.width + bar // 2, 0))
    draw, left = ImageDraw.Draw(drawn), image.width + 2 * bar
    draw.text((left, 0), f"{largest:.4g}", fill="black", font=_font(text))
    draw.text((left, image.height - 1), "1", fill="black", font=_font(text), anchor="lb")
    return drawn


def _font(size: int) -> Any:
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except (ImportError, TypeError):  # Pillow without FreeType, or before 10.1, has one small font
        return ImageFont.load_default()


def _to_image(pixels: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))

"""Pictures of one image's tokens: which patches went together, how large each token is, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..adapters.encoders.families.inputs import TokenGrid
from .drawing import PRUNED, count_tokens, draw_tokens, hatch, owners, read_pixels, spread, to_image
from .sheet import contact_sheet, font, readable_scale

if TYPE_CHECKING:
    from PIL import Image

Grid = TokenGrid | tuple[int, int]

_LEGEND = "patches in a token, log scale"


def merged_image(
    image: Image.Image, source: torch.Tensor, grid: Grid, *, border: bool = True, scale: int = 1
) -> Image.Image:
    """Draw each token as the mean colour of its patches, bordered in a colour of its own (ToMe, appendix E, figure 4).

    Args:
        image: the picture as the model saw it (see `model_view`), covered by the patches from edge to edge.
        source: (patches,), the token that holds each patch, or -1 where it was pruned; no special tokens.
        grid: rows and columns of patches.
        border: draw the borders. A token keeps its border colour from block to block.
        scale: enlarge the picture so many times before it is drawn on, for small patches.

    Raises:
        ValueError: `source` does not fit the grid, or the image has fewer pixels than patches.
    """
    grid = TokenGrid.of(grid)
    owner, pixels = owners(source, grid), read_pixels(image, grid, scale)
    return to_image(draw_tokens(pixels[None], owner, grid, scale, border)[0])


def size_heatmap(
    size_per_patch: torch.Tensor, grid: Grid, image: Image.Image, *, legend: bool = True, scale: int = 1
) -> Image.Image:
    """Draw over a grey picture how many patches the token of each patch holds, in logarithmic colours.

    Args:
        size_per_patch: (patches,), the size of the token that holds each patch, 0 where it was pruned.
        grid: rows and columns of patches.
        legend: add a bar of the colours on the right.

    Raises:
        ValueError: `size_per_patch` does not fit the grid or is negative, or the image has fewer pixels than patches.
    """
    from matplotlib import colormaps

    grid, size = TokenGrid.of(grid), torch.as_tensor(size_per_patch).detach().cpu().double()
    if not bool((size >= 0).all()):
        raise ValueError("`size_per_patch` has entries below 0 or NaN; it takes the size of each patch's token.")
    patches = torch.arange(size.numel())
    owner = owners(patches.where(size.flatten() > 0, PRUNED).view(size.shape), grid)
    pixels = read_pixels(image, grid, scale)[None]
    shade = colormaps["viridis"]
    # 0 for a lone patch, 1 for the largest
    level = np.log(np.maximum(size.numpy(), 1)) / np.log(max(float(size.max()), 2))
    grey = pixels @ np.array([0.299, 0.587, 0.114])  # (1, H, W, 3) -> (1, H, W), ITU-R BT.601
    heat = spread(255 * shade(level)[:, :3].reshape(*owner.shape, 3), grid, scale, pixels.shape)
    pruned = spread(owner, grid, scale, pixels.shape) == PRUNED
    drawn = to_image(hatch(0.35 * grey[..., None] + 0.65 * heat, pruned)[0])
    return _with_legend(drawn, shade, float(size.max())) if legend else drawn


def progression(
    image: Image.Image,
    sources: Sequence[torch.Tensor],
    grid: Grid,
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
    pictures = [merged_image(image, source, grid, border=border, scale=scale) for source in sources]
    labels = [f"block {block}: {count_tokens(source)} tokens" for block, source in zip(blocks, sources)]
    return contact_sheet([enlarged(image, scale), *pictures], columns, ["input", *labels])


def enlarged(image: Image.Image, scale: int) -> Image.Image:
    """Return a picture as RGB, its pixels repeated `scale` times each way."""
    return image.convert("RGB").resize((image.width * scale, image.height * scale), resample=0)


def _with_legend(image: Image.Image, shade: Any, largest: float) -> Image.Image:
    from PIL import Image, ImageDraw

    bar, text = max(8, image.width // 24), min(24, max(12, image.height // 18))
    drawn = Image.new("RGB", (image.width + 2 * bar + 3 * text, image.height), "white")
    drawn.paste(image, (0, 0))
    levels = np.linspace(1, 0, image.height)[:, None]
    colours = to_image(255 * shade(levels)[..., :3])  # (H, 1, 3), the largest on top
    drawn.paste(colours.resize((bar, image.height)), (image.width + bar // 2, 0))
    draw, left = ImageDraw.Draw(drawn), image.width + 2 * bar
    draw.text((left, 0), f"{largest:.4g}", fill="black", font=font(text))
    draw.text((left, image.height - 1), "1", fill="black", font=font(text), anchor="lb")
    between = image.height - 3 * text  # the two numbers
    if between > 0:
        caption = Image.new("RGB", (between, text + 4), "white")
        ImageDraw.Draw(caption).text((caption.width // 2, 0), _LEGEND, fill="black", font=font(text), anchor="mt")
        drawn.paste(caption.rotate(90, expand=True), (left, 3 * text // 2))
    return drawn

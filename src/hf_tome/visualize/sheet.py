"""Pictures side by side under their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..adapters.encoders.families.inputs import TokenGrid

if TYPE_CHECKING:
    from PIL import Image

GAP = 6
"""Pixels between the pictures of a sheet."""
DARK = "#27272a"
"""The background of a dark sheet, as of a panel of Gradio in dark mode."""

_READABLE_PATCH = 12  # pixels; below this a border covers too much of a patch
_READABLE_SIDE = 192  # pixels; below this a label does not fit over a picture
_SMALLEST_TEXT = 9  # pixels


def contact_sheet(
    images: Sequence[Image.Image | None],
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    *,
    gap: int = GAP,
    dark: bool = False,
) -> Image.Image:
    """Put pictures side by side in rows of `columns` (by default one row), each under its label, on white or `dark`.

    Args:
        images: the pictures; `None` leaves a place empty.
        labels: one a picture. A label may run on over the next pictures of its row if these have empty labels;
            where it does not fit, it is written smaller.

    Raises:
        ValueError: there is no picture, `columns` is not positive, or there is not one label a picture.
    """
    from PIL import Image, ImageDraw

    images = list(images)
    columns = len(images) if columns is None else columns
    shown = [image for image in images if image is not None]
    if not shown or columns < 1:
        raise ValueError(f"A contact sheet takes at least 1 picture and 1 column; got {len(shown)} and {columns}.")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"`labels` has {len(labels)} entries for {len(images)} pictures; give one each.")
    columns = min(columns, len(images))
    width, height = max(image.width for image in shown), max(image.height for image in shown)
    text = 0 if labels is None else min(24, max(14, width // 18))
    rows = -(-len(images) // columns)
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + text + gap) + gap), DARK if dark else "white"
    )
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = gap + index % columns * (width + gap), gap + index // columns * (height + text + gap)
        if image is not None:
            sheet.paste(image.convert("RGB"), (left, top + text))
        if labels is not None and labels[index]:
            room = _free_places(labels, index, columns) * (width + gap) - gap
            _write(draw, labels[index], (left, top), room, text * 3 // 4, "white" if dark else "black")
    return sheet


def readable_scale(image: Image.Image, grid: TokenGrid | tuple[int, int]) -> int:
    """Return the smallest whole enlargement with which patches are larger than their borders and labels fit."""
    grid = TokenGrid.of(grid)
    patch = min(image.height / grid.rows, image.width / grid.columns)
    # A spectrogram is wide and low: there the label fits all the same.
    return max(1, math.ceil(_READABLE_PATCH / patch), math.ceil(_READABLE_SIDE / image.width))


def font(size: int) -> Any:
    """Return Pillow's own font in a size in pixels, or in its only size where FreeType is missing."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except (ImportError, TypeError):  # Pillow without FreeType, or before 10.1, has one small font
        return ImageFont.load_default()


def _free_places(labels: Sequence[str], index: int, columns: int) -> int:
    """Return how many places wide a label may be: its own, and the unlabelled ones behind it in its row."""
    end = index + 1
    while end % columns and end < len(labels) and not labels[end]:
        end += 1
    return end - index


def _write(draw: Any, label: str, place: tuple[int, int], room: int, size: int, fill: str) -> None:
    while size > _SMALLEST_TEXT and draw.textlength(label, font=font(size)) > room:
        size -= 1
    draw.text(place, label, fill=fill, font=font(size))

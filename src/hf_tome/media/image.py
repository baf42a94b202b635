"""Photographs as the models take them: RGB, turned as their camera noted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def read_image(source: str | Path | bytes) -> Image.Image:
    """Return an image file, or its bytes, as RGB, upright as in `datasets` and transformers' pipelines.

    Raises:
        OSError, SyntaxError, PIL.Image.DecompressionBombError: PIL cannot decode it; a broken file may raise others.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return ImageOps.exif_transpose(image).convert("RGB")

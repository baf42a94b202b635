"""Maps of one number a pixel (classes, depths): the stored values, not colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .image import FORMATS, ImageError
from .limits import DEFAULT_LIMITS, MediaLimitError, MediaLimits
from .source import Source, error_reason, open_source, source_name

NUMPY = b"\x93NUMPY"
"""What a `.npy` file begins with."""


def read_map(source: Source, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Return an image of one channel, a palette image (its indices) or a `.npy` file as numbers (H, W).

    Raises:
        ImageError: it cannot be decoded, or has several channels.
        MediaLimitError: it is larger than `limits` admits.
    """
    from PIL import Image

    name = source_name(source, "a map")
    try:
        with open_source(source, limits) as file:
            begins = file.read(len(NUMPY))
            file.seek(0)
            if begins == NUMPY:
                return _read_numpy(file, limits)
            with Image.open(file, formats=FORMATS) as image:
                _check_size(*image.size, limits)
                return map_of_image(image)
    except (MediaLimitError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaLimitError(f"Cannot read {name} as a map: {error_reason(error)}.") from error
    except Exception as error:  # Pillow raises a dozen kinds, SyntaxError and struct.error among them
        raise ImageError(f"Cannot read {name} as a map: {error_reason(error)}.") from error


def map_of_image(image: Any) -> np.ndarray:
    """Return the numbers (H, W) of a PIL image of one channel.

    Raises:
        ImageError: it has several.
    """
    values = np.array(image)
    if values.ndim != 2:
        raise ImageError(f"it has the mode {image.mode}; a map has one number a pixel (modes L, P, I;16, I or F)")
    return values


def is_map(file: Path) -> bool:
    """Tell by its name whether a file may hold a map."""
    return file.suffix.lower() in (".png", ".tif", ".tiff", ".bmp", ".pgm", ".npy")


def _read_numpy(file: BinaryIO, limits: MediaLimits) -> np.ndarray:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if len(shape) != 2 or dtype.kind not in "biuf":
        raise ImageError(f"it is an array of shape {shape} and type {dtype}; a map has one number a pixel")
    _check_size(shape[1], shape[0], limits)
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _check_size(width: int, height: int, limits: MediaLimits) -> None:
    limits.check("image_pixels", width * height, f"it has {width} x {height} pixels")

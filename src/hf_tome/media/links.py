"""Inputs of pipelines that are no files: links that the caller gives, and images as text."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

from .image import ImageError, read_image, to_rgb
from .limits import Deadline, MediaLimits
from .source import error_reason

TIMEOUT = 10.0
"""Seconds to wait for an answer, and for each part of a download."""


def fetch(source: Any, failure: type[Exception], limits: MediaLimits, timeout: float | None = None) -> Any:
    """Download what a link names; raises `failure` where that fails, takes too long or exceeds `file_bytes`."""
    if not (isinstance(source, str) and source.startswith(("http://", "https://"))):
        return source
    from huggingface_hub.utils import httpx

    deadline, content = Deadline(limits), bytearray()
    try:
        with httpx.stream("GET", source, follow_redirects=True, timeout=timeout or TIMEOUT) as response:
            response.raise_for_status()
            for block in response.iter_bytes():
                content += block
                limits.check("file_bytes", len(content), "it has more bytes")
                deadline.check()
    except Exception as error:  # httpx has no one class for all of its own
        raise failure(f"Cannot fetch {source}: {error_reason(error)}.") from error
    return bytes(content)


def open_linked_image(image: Any, limits: MediaLimits, timeout: float | None = None) -> Any:
    """Return an image, a link, a path, bytes or base64 text as RGB; what is none of them is left to transformers."""
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image):
        return to_rgb(ImageOps.exif_transpose(image))
    image = fetch(image, ImageError, limits, timeout)
    if isinstance(image, str) and not os.path.exists(image):
        image = _from_base64(image)
    return read_image(image, limits) if isinstance(image, (str, Path, bytes)) else image


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.split(",", 1)[1] if text.startswith("data:image/") else text, validate=True)
    except (ValueError, IndexError, binascii.Error) as error:
        raise ImageError(
            f"Cannot read {text[:60]!r} as an image: it is no file, no link that begins with http:// or https://, and "
            "no base64 text."
        ) from error

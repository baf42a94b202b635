"""Images as the models take them: RGB, upright, checked against the limits before they are decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from .limits import DEFAULT_LIMITS, MediaLimitError, MediaLimits
from .source import Source, error_reason, open_source, source_name

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Formats that Pillow may decode; JPEG includes MPO. EPS starts Ghostscript; AVIF and JPEG 2000 may hold other sizes
than they declare, and need several times the memory."""

JPEG_SCANS = 100
"""Most scans of a JPEG; each costs a pass over the whole image, and takes a few bytes. Encoders write up to 12."""

SLOW_CODECS = ("ppm", "ppm_plain", "bmp_rle")
"""Of Pillow's decoders, those that are written in Python and take a microsecond a pixel."""
SLOW_PIXELS = 1_000_000

WEIGHTS = {"WEBP": 1.6}
"""By the format, how often a pixel counts: Pillow's decoder of WebP holds the image four times."""

BLOCK = 1 << 20
"""Bytes or pixels that are worked on at once."""


class ImageError(ValueError):
    """An image cannot be read; the message says which and why."""


def read_image(source: Source, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """Return an image file, or its bytes, as RGB, upright as in `datasets` and transformers' pipelines; see `to_rgb`.

    Raises:
        ImageError: it cannot be decoded, or its mode has no meaning as RGB.
        MediaLimitError: it is larger than `limits` admits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = source_name(source, "the upload")
    try:
        with open_source(source, limits) as file, Image.open(file, formats=FORMATS) as image:
            _check_size(image, limits)
            if image.format in ("JPEG", "MPO") or "jpeg" in str(image.info.get("compression")):
                _check_scans(file)
            ImageOps.exif_transpose(image, in_place=True)
            rgb = to_rgb(image)
            # The object of the file keeps what its decoder holds, so a plain image takes over the pixels.
            return rgb._new(rgb.im) if rgb is image else rgb
    except (MediaLimitError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaLimitError(f"Cannot read {name} as an image: {error_reason(error)}.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"Cannot read {name} as an image: cannot identify image file (supported are {', '.join(FORMATS)})."
        ) from error
    except Exception as error:  # Pillow raises a dozen kinds, SyntaxError and struct.error among them
        raise ImageError(f"Cannot read {name} as an image: {error_reason(error)}.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB by what its mode means.

    Transparent parts show white. 16-bit greys are scaled to 8 bits, and floats from 0 to 1 are scaled to 255; floats
    and 32-bit integers of other ranges are refused, as nothing tells which value is white.

    Raises:
        ImageError: no rule converts the mode.
    """
    if image.mode in DEEP_GREYS:
        return _by_bands(image, DEEP_GREYS[image.mode])
    if _has_transparency(image):
        return _by_bands(image, _on_white)
    if image.mode == "RGB":
        image.load()
        return image
    return image.convert("RGB")


def _check_size(image: Image.Image, limits: MediaLimits) -> None:
    width, height = image.size
    size = f"it has {width} x {height} pixels"
    weight = WEIGHTS.get(image.format or "", 1)
    counted = f" ({image.format} counts {weight}-fold)" if weight != 1 else ""
    limits.check("image_pixels", width * height * weight, size + counted)
    limits.check("aspect_ratio", max(width, height) / max(min(width, height), 1), size)
    codecs = [tile[0] for tile in getattr(image, "tile", ())]
    if width * height > SLOW_PIXELS and any(codec in SLOW_CODECS for codec in codecs):
        raise MediaLimitError(f"{size} in a slow encoding, above the limit of {SLOW_PIXELS}; save it as PNG")


def _check_scans(file: BinaryIO) -> None:
    """Refuse a JPEG of very many scans; their marker occurs nowhere else in compressed data."""
    position = file.tell()
    file.seek(0)
    scans, last = 0, b""
    while block := file.read(BLOCK):
        scans += (last + block).count(b"\xff\xda")
        last = block[-1:]
    file.seek(position)
    if scans > JPEG_SCANS:
        raise MediaLimitError(f"it has {scans} JPEG scans, above the limit of {JPEG_SCANS}")


def _has_transparency(image: Image.Image) -> bool:
    palette = image.palette.mode if image.mode == "P" and image.palette is not None else ""
    return image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info or palette.endswith("A")


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to RGB band by band: copies in wider types would take more memory than the image."""
    from PIL import Image as images

    image.load()
    width, height = image.size
    rgb, rows = images.new("RGB", image.size), max(1, BLOCK // width)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        band.format = image.format  # `crop` drops it
        rgb.paste(convert(band), (0, top))
    return rgb


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image as images

    colours = image.convert("RGBA")
    background = images.new("RGB", colours.size, "white")
    background.paste(colours, mask=colours.getchannel("A"))
    return background


def _from_16_bits(image: Image.Image) -> Image.Image:
    return _grey((np.asarray(image).astype(np.uint32) + 128) // 257)


def _from_integers(image: Image.Image) -> Image.Image:
    """Convert 32-bit integers, in which Pillow holds 16-bit greys of PNG and PPM."""
    low, high = cast(tuple[float, float], image.getextrema())  # of one band
    if image.format in ("PNG", "PPM") and low >= 0 and high <= 65535:
        return _from_16_bits(image)
    raise ImageError(f"it holds 32-bit integers such as {high}, whose white is unknown; save it in 8 or 16 bits")


def _from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    beyond = values[~((values >= 0) & (values <= 1))]  # NaN is neither
    if len(beyond):
        raise ImageError(
            f"it holds floats such as {beyond[0]:.4g}, whose white is unknown (supported are 0 to 1); save it in 8 or "
            "16 bits"
        )
    return _grey(np.rint(values * np.float32(255)))


def _grey(values: np.ndarray) -> Image.Image:
    from PIL import Image as images

    return images.fromarray(values.astype(np.uint8)).convert("RGB")  # (H, W) -> (H, W, 3)


DEEP_GREYS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "I;16": _from_16_bits,
    "I;16L": _from_16_bits,
    "I;16B": _from_16_bits,
    "I;16N": _from_16_bits,
    "I": _from_integers,
    "F": _from_floats,
}
"""By the mode, greys of more than 8 bits, which `convert` would clip at 255."""

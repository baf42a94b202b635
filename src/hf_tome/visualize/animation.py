"""Pictures one after the other: GIF through Pillow, MP4 through PyAV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

CODECS = ("libx264", "h264", "mpeg4")
"""Encoders of MP4, from the best on: FFmpeg may be built without the first two."""


def save_animation(pictures: Sequence[Image.Image], path: str | Path, *, seconds: float = 0.25) -> None:
    """Write pictures of one size as a GIF or an MP4, by the end of the path.

    Args:
        seconds: how long each is shown.

    Raises:
        ValueError: there is no picture, they differ in size, or the path ends in something else.
        ImportError: an MP4 is asked for and PyAV is not installed, or none of its encoders.
    """
    path = Path(path)
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise ValueError(f"Cannot write {path.name}: an animation takes a name that ends in {' or '.join(WRITERS)}.")
    sizes = {picture.size for picture in pictures}
    if len(sizes) != 1:
        raise ValueError(f"An animation takes pictures of one size; got {len(pictures)} of {len(sizes)} sizes.")
    write([picture.convert("RGB") for picture in pictures], path, seconds)


def _write_gif(pictures: list[Image.Image], path: Path, seconds: float) -> None:
    from PIL import Image

    # One palette for all pictures: else a token would change its shade from frame to frame.
    thinned = np.concatenate(
        [np.asarray(picture)[::2, ::2] for picture in pictures]
    )  # a quarter of the pixels will do
    palette = Image.fromarray(thinned).quantize(256, method=Image.Quantize.FASTOCTREE)  # keeps the rare border colours
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 * seconds), loop=0)


def _write_mp4(pictures: list[Image.Image], path: Path, seconds: float) -> None:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"Writing {path.name} needs PyAV: `pip install 'av>=18'`, or name a .gif.") from error

    codec = next((name for name in CODECS if name in av.codecs_available), None)
    if codec is None:
        raise ImportError(f"This PyAV has none of the encoders {', '.join(CODECS)}; name a .gif.")
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(1 / seconds).limit_denominator(1000))
        # Players take 4:2:0 alone, which halves both sides of the colours: they have to be even.
        width, height = (side + side % 2 for side in pictures[0].size)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 4_000_000  # borders are fine lines, and the default blurs them
        for picture in pictures:
            pixels = np.asarray(picture)
            padding = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
            frame = av.VideoFrame.from_ndarray(np.pad(pixels, padding, mode="edge"), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


WRITERS: dict[str, Callable[[list, Path, float], None]] = {".gif": _write_gif, ".mp4": _write_mp4}
"""By the end of a file's name, how it is written."""

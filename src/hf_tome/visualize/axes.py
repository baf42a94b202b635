"""Time and frequency along the edges of a spectrogram's picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .sheet import font

if TYPE_CHECKING:
    from PIL import Image

FRAME_SECONDS = 0.01
"""The step from one column of a log-mel spectrogram to the next (AST, section 2.1)."""
LOWEST_HERTZ = 20.0
"""The lower edge of the first mel bin, in Kaldi's filter bank and AST's processor."""

_TEXT = 11  # pixels
_LEFT, _BELOW, _TICK = 48, 20, 4
_APART = 48  # pixels between the numbers of the time axis, at least
_HERTZ = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)


@dataclass(frozen=True)
class SpectrogramAxes:
    """What a log-mel spectrogram covers.

    Attributes:
        seconds: of its whole width.
        highest: the frequency of its upper edge, in hertz; the lower one is `LOWEST_HERTZ`.
    """

    seconds: float
    highest: float

    def height_of(self, hertz: float) -> float:
        """Return where a frequency lies, from 0 at the lower edge to 1 at the upper: mels are spaced evenly."""
        low, high = _mel(LOWEST_HERTZ), _mel(self.highest)
        return (_mel(hertz) - low) / (high - low)


def with_axes(picture: Image.Image, axes: SpectrogramAxes) -> Image.Image:
    """Return a spectrogram's picture with seconds below it and frequencies to its left, on white."""
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (picture.width + _LEFT, picture.height + _BELOW), "white")
    sheet.paste(picture.convert("RGB"), (_LEFT, 0))
    draw, letters = ImageDraw.Draw(sheet), font(_TEXT)
    for x, text in _times(axes, picture.width):
        draw.line([(_LEFT + x, picture.height), (_LEFT + x, picture.height + _TICK)], fill="black")
        left = min(
            _LEFT + x - draw.textlength(text, font=letters) / 2, sheet.width - draw.textlength(text, font=letters)
        )
        draw.text((left, picture.height + _TICK), text, fill="black", font=letters)
    for y, text in _frequencies(axes, picture.height):
        draw.line([(_LEFT - _TICK, y), (_LEFT - 1, y)], fill="black")
        left = _LEFT - _TICK - 2 - draw.textlength(text, font=letters)
        draw.text((left, min(max(y - _TEXT / 2 - 1, 0), picture.height - _TEXT)), text, fill="black", font=letters)
    return sheet


def _times(axes: SpectrogramAxes, width: int) -> Iterator[tuple[float, str]]:
    """Yield places and texts of the time axis: steps of 1, 2 or 5 times a power of ten."""
    least = axes.seconds * _APART / width
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    for number in range(int(axes.seconds / step + 1e-9) + 1):
        seconds = number * step
        yield min(seconds / axes.seconds * width, width - 1), f"{seconds:g} s"


def _frequencies(axes: SpectrogramAxes, height: int) -> Iterator[tuple[float, str]]:
    """Yield places and texts of the frequency axis from the top down, as far apart as they can be read."""
    last = -math.inf
    for hertz in reversed(_HERTZ):
        y = (1 - axes.height_of(hertz)) * (height - 1)
        if hertz <= axes.highest and y - last >= _TEXT:
            last = y
            yield y, f"{hertz / 1000:g} kHz" if hertz >= 1000 else f"{hertz} Hz"


def _mel(hertz: float) -> float:
    return 1127.0 * math.log1p(hertz / 700.0)

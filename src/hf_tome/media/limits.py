"""Limits on the media that are opened: files of strangers must not exhaust memory or time."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass


class MediaLimitError(ValueError):
    """A file exceeds a limit; the message says which one, and how to raise it."""


@dataclass(frozen=True)
class MediaLimits:
    """Largest media that are decoded. All but `decoding_seconds` are checked before decoding, by the declared sizes.

    The defaults keep decoding one image below 300 MB of memory, and admit photographs of 25 megapixels, 4K clips of 15
    minutes and recordings of an hour. Whoever trusts the files may raise them.
    """

    file_bytes: int = 1_000_000_000
    """Of any file or download."""
    image_pixels: int = 25_000_000
    """Width x height of an image. Pillow refuses images of over 178,956,970 pixels by itself."""
    aspect_ratio: int = 300
    """Longer side to shorter side of an image; processors that scale the shorter side enlarge the longer with it."""
    frame_pixels: int = 9_000_000
    """Width x height of a clip; 4096 x 2160 passes."""
    frames: int = 30_000
    """Frames in a clip, all of which may have to be decoded to find those that a model takes."""
    clip_pixels: int = 500_000_000
    """Pixels of all frames of a clip that are held at once, of all its views together."""
    recording_seconds: int = 3_600
    """Length of a recording."""
    decoding_seconds: int = 60
    """Time that reading one clip or recording may take."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"The media limit {name} is {value!r}; it takes an integer of at least 1.")

    def check(self, name: str, value: float, description: str) -> None:
        """Compare a value with the limit `name`; `found` describes the value, as in "it has 9000 x 9000 pixels".

        Raises:
            MediaLimitError: the value is above the limit.
        """
        limit = getattr(self, name)
        if value > limit:
            raise MediaLimitError(f"{description}, above the limit {name}={limit}")


DEFAULT_LIMITS = MediaLimits()


def parse_limits(text: str) -> MediaLimits:
    """Return the limits that a text such as `image_pixels=100000000,recording_seconds=7200` sets, others as usual.

    Raises:
        ValueError: there is no such limit, or its value is no integer of at least 1.
    """
    names = [field.name for field in dataclasses.fields(MediaLimits)]
    values: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in names:
            raise ValueError(f"There is no media limit {name!r}; the limits are {', '.join(names)}.")
        if not value.isdecimal() or len(value) > 18:
            raise ValueError(f"The media limit {name} is {value!r}; it takes an integer, as in {name}=1000000.")
        values[name] = int(value)
    return MediaLimits(**values)


class Deadline:
    """A point in time until which a file has to be read."""

    def __init__(self, limits: MediaLimits):
        self.seconds = limits.decoding_seconds
        self.end = time.monotonic() + self.seconds

    def check(self) -> None:
        """Raise `MediaLimitError` where the time is over."""
        if time.monotonic() > self.end:
            raise MediaLimitError(f"reading it takes longer than the limit decoding_seconds={self.seconds}")

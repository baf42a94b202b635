"""Images, clips and recordings in the messages of a chat, opened within limits before a processor sees them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .audio import AudioError, read_audio
from .limits import MediaLimits
from .links import fetch, open_linked_image
from .video import check_clip
from .video_decoders import VideoError

KEYS = {
    "image": ("image", "url", "path", "base64"),
    "video": ("video", "url", "path"),
    "audio": ("audio", "url", "path"),
}
"""By the type of a part of a message, where transformers looks for what it holds."""


def open_images(images: Any, limits: MediaLimits, timeout: float | None = None) -> Any:
    """Return an image, or the images of nested lists, as RGB; see `open_linked_image`."""
    if isinstance(images, (list, tuple)):
        return [open_images(image, limits, timeout) for image in images]
    return open_linked_image(images, limits, timeout)


@contextmanager
def open_messages(messages: Any, rate: int, limits: MediaLimits, timeout: float | None = None) -> Iterator[list]:
    """Give copies of the messages of a chat that hold media instead of their names.

    Images become RGB and recordings samples at `rate`. A clip is checked and stays a file, as processors sample frames
    by its times; a downloaded one lies in a folder that is deleted at the end of the block.

    Raises:
        ImageError, VideoError, AudioError, MediaLimitError: a file cannot be read, or is too large.
    """
    with ExitStack() as files:
        openers = {
            "image": lambda image: open_linked_image(image, limits, timeout),
            "video": lambda clip: _open_clip(clip, limits, timeout, files),
            "audio": lambda sound: _open_sound(sound, rate, limits, timeout),
        }
        yield [_opened(message, openers) for message in messages]


def _opened(message: dict[str, Any], openers: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return message
    return {**message, "content": [_open_part(part, openers) for part in content]}


def _open_part(part: Any, openers: dict[str, Callable[[Any], Any]]) -> Any:
    """Return a part of a message with its medium under the first of the keys, whichever it had."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in openers:
        return part
    named = [key for key in KEYS[kind] if part.get(key) is not None]
    rest = {key: value for key, value in part.items() if key not in KEYS[kind]}
    return {**rest, kind: openers[kind](part[named[0]])} if named else part


def _open_clip(clip: Any, limits: MediaLimits, timeout: float | None, files: ExitStack) -> Any:
    clip = fetch(clip, VideoError, limits, timeout)
    if not isinstance(clip, (str, Path, bytes)):
        return clip  # frames that are decoded already
    check_clip(clip, limits)
    if not isinstance(clip, bytes):
        return str(clip)
    path = Path(files.enter_context(tempfile.TemporaryDirectory())) / "clip"
    path.write_bytes(clip)
    return str(path)


def _open_sound(sound: Any, rate: int, limits: MediaLimits, timeout: float | None) -> Any:
    sound = fetch(sound, AudioError, limits, timeout)
    return read_audio(sound, rate, limits) if isinstance(sound, (str, Path, bytes)) else sound

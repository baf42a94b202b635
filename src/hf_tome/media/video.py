"""Frames of a clip, sampled uniformly over its whole length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .limits import DEFAULT_LIMITS, MediaLimits
from .source import Source, error_reason, source_name
from .video_decoders import DECODERS, VideoError, check_container, first_working


def uniform_indices(length: int, count: int, clip: int = 0, clips: int = 1) -> np.ndarray:
    """Return the indices of `count` frames spread over a clip of `length` frames.

    The clip is cut into `count` equal parts. One view takes the middle frame of each; several take different frames of
    the same parts, so that every view covers the whole clip. A clip shorter than `count` gives all its frames, in
    order, and then repeats the last one.
    """
    if length < count:
        return np.minimum(np.arange(count), length - 1)
    return ((np.arange(count) + (clip + 0.5) / clips) * (length / count)).astype(np.int64)


def read_frames(
    video: Any,
    count: int,
    *,
    clip: int = 0,
    clips: int = 1,
    decoder: str | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> np.ndarray:
    """Return `count` frames (count, H, W, 3), `uint8`, of a file, of bytes, or of frames that are already decoded.

    Frames of files are upright, as their rotation metadata say.

    Args:
        video: a path, the bytes of a file, an array (T, H, W, 3), or a list of T frames (arrays or PIL images).
        count: frames to return; see `uniform_indices`, also for `clip` and `clips`.
        decoder (`str`, *optional*): one of `DECODERS`; by default the first that is installed and works.
        limits: sizes and times beyond which a file is refused.

    Raises:
        VideoError: the clip cannot be decoded, has no frames, exceeds a limit, or is an array of another shape.
        ImportError: no decoder is installed.
    """
    if isinstance(video, (str, Path, bytes)):
        return _decode(video, lambda length: uniform_indices(length, count, clip, clips), decoder, limits)
    frames = stack_frames(video)
    return frames[uniform_indices(len(frames), count, clip, clips)]


def read_views(
    video: Any, count: int, clips: int, decoder: str | None = None, limits: MediaLimits = DEFAULT_LIMITS
) -> list[np.ndarray]:
    """Return the frames of all `clips` views of a clip, which is decoded once; see `read_frames`."""
    wanted = [lambda length, clip=clip: uniform_indices(length, count, clip, clips) for clip in range(clips)]
    if not isinstance(video, (str, Path, bytes)):
        return [read_frames(video, count, clip=clip, clips=clips) for clip in range(clips)]
    joined = _decode(video, lambda length: np.concatenate([indices(length) for indices in wanted]), decoder, limits)
    return list(joined.reshape(clips, count, *joined.shape[1:]))


def stack_frames(video: Any) -> np.ndarray:
    """Return decoded frames as one array (T, H, W, 3) of `uint8`; floats from 0 to 1 are scaled to 255.

    Raises:
        VideoError: they are of different sizes, not frames of three colours, or of values outside 0 to 255.
    """
    try:
        frames = np.stack([np.asarray(frame) for frame in video])
    except (TypeError, ValueError) as error:
        raise VideoError(f"The frames cannot be stacked ({error}); a clip is an array (T, H, W, 3).") from error
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise VideoError(f"The frames have the shape {frames.shape}; a clip is an array (T, H, W, 3), T at least 1.")
    return _to_bytes(frames)


def _to_bytes(frames: np.ndarray) -> np.ndarray:
    if frames.dtype == np.uint8 or not frames.size:
        return frames.astype(np.uint8)
    if frames.dtype.kind not in "iuf":
        raise VideoError(f"The frames are of type {frames.dtype}; a clip holds integers 0 to 255 or floats 0 to 1.")
    low, high = frames.min(), frames.max()
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise VideoError(f"The frames hold values from {low:.4g} to {high:.4g}; a clip holds 0 to 255 or 0.0 to 1.0.")
    is_fraction = frames.dtype.kind == "f" and high <= 1
    return np.rint(frames * 255 if is_fraction else frames).astype(np.uint8)


def is_frame(value: Any) -> bool:
    """Tell whether a value is one decoded frame: a PIL image or an array (H, W, 3)."""
    return hasattr(value, "getpixel") or getattr(value, "ndim", 0) == 3


def spatial_crops(frames: np.ndarray, count: int) -> list[np.ndarray]:
    """Return `count` square crops (T, S, S, 3) along the longer side of frames (T, H, W, 3), as in the 5 x 3 protocol.

    One crop is the whole frame, of which the processor takes the middle.
    """
    if count == 1:
        return [frames]
    height, width = frames.shape[1:3]
    side = min(height, width)
    starts = np.linspace(0, max(height, width) - side, count).round().astype(int)
    if width >= height:
        return [frames[:, :, start : start + side] for start in starts]
    return [frames[:, start : start + side] for start in starts]


def _decode(
    video: Source, indices: Callable[[int], np.ndarray], decoder: str | None, limits: MediaLimits
) -> np.ndarray:
    if decoder is not None and decoder not in DECODERS:
        raise ValueError(f"`decoder` is {decoder!r}; it takes one of {', '.join(map(repr, DECODERS))}.")
    read = first_working(DECODERS if decoder is None else (decoder,))
    try:
        return read(video, indices, limits)
    except Exception as error:  # PyAV and torchcodec raise a dozen kinds
        raise VideoError(f"Cannot read {source_name(video, 'a clip')}: {error_reason(error)}.") from error


def check_clip(video: Source, limits: MediaLimits = DEFAULT_LIMITS) -> None:
    """Check the container and the declared sizes of a clip that something else is to decode.

    Raises:
        VideoError: it is no clip, or exceeds a limit.
        ImportError: PyAV is not installed.
    """
    import av  # noqa: F401  # what is missing is not the clip

    try:
        check_container(video, limits)
    except Exception as error:  # PyAV raises a dozen kinds
        raise VideoError(f"Cannot read {source_name(video, 'a clip')}: {error_reason(error)}.") from error


def frame_count(config: Any) -> int:
    """Return the number of frames that a model of this config takes.

    Raises:
        ValueError: the config does not say.
    """
    names: Sequence[str] = ("num_frames", "frames_per_clip")
    for name in names:
        if getattr(config, name, None):
            return int(getattr(config, name))
    raise ValueError(f"{type(config).__name__} has none of {', '.join(names)}; pass `num_frames`.")

"""Frames of a clip, sampled uniformly over its whole length."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

Source = str | Path | bytes
Reader = Callable[[str | bytes, Callable[[int], np.ndarray]], np.ndarray]
"""Decodes the frames of a clip at the indices that a function of its length names."""


class VideoError(ValueError):
    """A clip cannot be read; the message says which and why."""


def uniform_indices(length: int, count: int, clip: int = 0, clips: int = 1) -> np.ndarray:
    """Return the indices of `count` frames spread over a clip of `length` frames.

    The clip is cut into `count` equal parts. One view takes the middle frame of each; several take different frames of
    the same parts, so that every view covers the whole clip. A clip shorter than `count` gives all its frames, in
    order, and then repeats the last one.
    """
    if length < count:
        return np.minimum(np.arange(count), length - 1)
    return ((np.arange(count) + (clip + 0.5) / clips) * (length / count)).astype(np.int64)


def read_frames(video: Any, count: int, *, clip: int = 0, clips: int = 1, decoder: str | None = None) -> np.ndarray:
    """Return `count` frames (count, H, W, 3), `uint8`, of a file, of bytes, or of frames that are already decoded.

    Args:
        video: a path, the bytes of a file, an array (T, H, W, 3), or a list of T frames (arrays or PIL images).
        count: frames to return; see `uniform_indices`, also for `clip` and `clips`.
        decoder (`str`, *optional*): one of `DECODERS`; by default the first that is installed and works.

    Raises:
        VideoError: the clip cannot be decoded, has no frames, or is an array of another shape.
        ImportError: no decoder is installed.
    """
    if isinstance(video, (str, Path, bytes)):
        return _decode(video, lambda length: uniform_indices(length, count, clip, clips), decoder)
    frames = stack_frames(video)
    return frames[uniform_indices(len(frames), count, clip, clips)]


def read_views(video: Any, count: int, clips: int, decoder: str | None = None) -> list[np.ndarray]:
    """Return the frames of all `clips` views of a clip, which is decoded once; see `read_frames`."""
    wanted = [lambda length, clip=clip: uniform_indices(length, count, clip, clips) for clip in range(clips)]
    if not isinstance(video, (str, Path, bytes)):
        return [read_frames(video, count, clip=clip, clips=clips) for clip in range(clips)]
    joined = _decode(video, lambda length: np.concatenate([indices(length) for indices in wanted]), decoder)
    return list(joined.reshape(clips, count, *joined.shape[1:]))


def stack_frames(video: Any) -> np.ndarray:
    """Return decoded frames as one array (T, H, W, 3).

    Raises:
        VideoError: they are of different sizes, or not frames of three colours.
    """
    try:
        frames = np.stack([np.asarray(frame) for frame in video])
    except (TypeError, ValueError) as error:
        raise VideoError(f"The frames cannot be stacked ({error}); a clip is an array (T, H, W, 3).") from error
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise VideoError(f"The frames have the shape {frames.shape}; a clip is an array (T, H, W, 3), T at least 1.")
    return frames


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


def _decode(video: Source, indices: Callable[[int], np.ndarray], decoder: str | None) -> np.ndarray:
    if decoder is not None and decoder not in DECODERS:
        raise ValueError(f"`decoder` is {decoder!r}; it takes one of {', '.join(map(repr, DECODERS))}.")
    name = "a clip" if isinstance(video, bytes) else Path(video).name
    read = _first_working(DECODERS if decoder is None else (decoder,))
    try:
        return read(video if isinstance(video, bytes) else str(video), indices)
    except Exception as error:  # PyAV and torchcodec raise a dozen kinds
        raise VideoError(f"Cannot read {name}: {reason(error)}.") from error


def _first_working(modules: Iterable[str]) -> Reader:
    problems = []
    for module in modules:
        try:
            import_module(module)
        except (ImportError, OSError, RuntimeError) as error:  # a torchcodec that finds no FFmpeg raises the last
            problems.append(f"{module}: {reason(error)}")
        else:
            return DECODERS[module]
    raise ImportError(f"No video decoder works ({'; '.join(problems)}). Install one: `pip install 'av>=18'`.")


def reason(error: Exception) -> str:
    """Return the first line of an error, without the path that PyAV repeats and without a full stop."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _read_pyav(video: str | bytes, indices: Callable[[int], np.ndarray]) -> np.ndarray:
    import av

    with av.open(io.BytesIO(video) if isinstance(video, bytes) else video, "r") as container:
        if not container.streams.video:
            raise VideoError("it has no video stream")
        stream = container.streams.video[0]
        # Not every container says how many frames it holds, and some lie; packets are counted without decoding.
        length = len([packet for packet in container.demux(stream) if packet.size])
        if not length:
            raise VideoError("it has no frames")
        wanted = indices(length)
        container.seek(0)
        stream.thread_type = "AUTO"
        frames: dict[int, np.ndarray] = {}
        needed, last, image = set(wanted.tolist()), int(max(wanted)), None
        for position, frame in enumerate(container.decode(stream)):
            image = frame
            if position in needed:
                frames[position] = frame.to_ndarray(format="rgb24")
            if position >= last:
                break
    if image is None:
        raise VideoError("none of its frames can be decoded")
    # A packet or two may give no frame: what is missing at the end repeats the last one.
    final = image.to_ndarray(format="rgb24")
    return np.stack([frames.get(index, final) for index in wanted.tolist()])


def _read_torchcodec(video: str | bytes, indices: Callable[[int], np.ndarray]) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    opened = VideoDecoder(video, dimension_order="NHWC")
    wanted = indices(len(opened)).tolist()
    return opened.get_frames_at(indices=wanted).data.cpu().numpy()


DECODERS: dict[str, Reader] = {"av": _read_pyav, "torchcodec": _read_torchcodec}
"""By module, from the most robust on."""


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

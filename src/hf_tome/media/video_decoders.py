"""Decoders of clips: from a file to the frames at given indices, upright and within the limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import numpy as np

from .container import open_container
from .limits import Deadline, MediaLimits
from .source import Source, error_reason, open_source

Reader = Callable[[Source, Callable[[int], np.ndarray], MediaLimits], np.ndarray]
"""Decodes the frames of a clip at the indices that a function of its length names."""


SIGNATURES = ((4, b"ftyp"), (0, b"\x1a\x45\xdf\xa3"), (0, b"RIFF"), (0, b"OggS"), (0, b"FLV"), (0, b"\0\0\x01\xba"))
"""Offset and first bytes of MP4 and MOV, Matroska and WebM, AVI, Ogg, FLV and MPEG."""


class VideoError(ValueError):
    """A clip cannot be read; the message says which and why."""


def first_working(modules: Iterable[str]) -> Reader:
    """Return the first decoder that can be imported.

    Raises:
        ImportError: none can; the message says why.
    """
    problems = []
    for module in modules:
        try:
            import_module(module)
        except (ImportError, OSError, RuntimeError) as error:  # a torchcodec that finds no FFmpeg raises the last
            problems.append(f"{module}: {error_reason(error)}")
        else:
            return DECODERS[module]
    raise ImportError(f"No video decoder works ({'; '.join(problems)}). Install one: `pip install 'av>=18'`.")


def _read_pyav(video: Source, indices: Callable[[int], np.ndarray], limits: MediaLimits) -> np.ndarray:
    with open_container(video, limits) as (container, deadline):
        stream = _moving_stream(container)
        wanted = indices(_count_packets(container, stream, limits, deadline))
        width, height = stream.codec_context.width, stream.codec_context.height
        _check_size(width, height, len(set(wanted.tolist())), limits)
        container.seek(0)
        stream.thread_type = "AUTO"
        frames: dict[int, np.ndarray] = {}
        needed, last, image = set(wanted.tolist()), int(max(wanted)), None
        for position, frame in enumerate(container.decode(stream)):
            deadline.check()
            if (frame.width, frame.height) != (width, height):
                _check_size(frame.width, frame.height, len(needed), limits)
            image = frame
            if position in needed:
                frames[position] = _upright(frame)
            if position >= last:
                break
    if image is None:
        raise VideoError("none of its frames can be decoded")
    # A packet or two may give no frame: what is missing at the end repeats the last one.
    final = _upright(image)
    return np.stack([frames.get(index, final) for index in wanted.tolist()])


def check_container(video: Source, limits: MediaLimits) -> None:
    """Raise where a file is no clip, or where its frames are too large or too many; none is decoded."""
    with open_container(video, limits) as (container, deadline):
        stream = _moving_stream(container)
        _count_packets(container, stream, limits, deadline)
        _check_size(stream.codec_context.width, stream.codec_context.height, 1, limits)


def _moving_stream(container: Any) -> Any:
    """Return the first video stream that is no picture, such as the cover of a recording."""
    pictures = ("attached_pic", "timed_thumbnails")
    moving = [
        stream
        for stream in container.streams.video
        if not any(getattr(type(stream.disposition), name) in stream.disposition for name in pictures)
    ]
    if not moving:
        raise VideoError("it has no video stream" + (" but a cover picture" if container.streams.video else ""))
    return moving[0]


def _count_packets(container: Any, stream: Any, limits: MediaLimits, deadline: Deadline) -> int:
    """Count the frames without decoding them: not every container says how many it holds, and some lie."""
    count = 0
    for packet in container.demux(stream):
        deadline.check()
        count += bool(packet.size)
        limits.check("frames", count, f"it has at least {count} frames")
    if not count:
        raise VideoError("it has no frames")
    return count


def _check_size(width: int, height: int, frames: int, limits: MediaLimits) -> None:
    limits.check("frame_pixels", width * height, f"it has {width} x {height} pixels")
    pixels = width * height * frames
    limits.check("clip_pixels", pixels, f"{frames} frames of it have {pixels} pixels")


def _upright(frame: Any) -> np.ndarray:
    """Return a frame (H, W, 3), turned and mirrored by its display matrix to the nearest right angle."""
    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # A pixel at (x, y) is shown at (a x + c y, b x + d y), with rows (a, b, u), (c, d, v) and (x, y, w) in the matrix.
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b  # (H, W, 3) -> (W, H, 3)
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _read_torchcodec(video: Source, indices: Callable[[int], np.ndarray], limits: MediaLimits) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    with open_source(video, limits) as file:
        head = file.read(16)
        file.seek(0)
        # torchcodec takes no list of demuxers, so that a playlist would open the files that it names.
        if not any(head[offset:].startswith(signature) for offset, signature in SIGNATURES):
            raise VideoError("it is no MP4, MOV, Matroska, WebM, AVI, Ogg, FLV or MPEG file")
        opened = VideoDecoder(file, dimension_order="NHWC")
        limits.check("frames", len(opened), f"it has {len(opened)} frames")
        wanted = indices(len(opened)).tolist()
        _check_size(opened.metadata.width, opened.metadata.height, len(set(wanted)), limits)
        return opened.get_frames_at(indices=wanted).data.cpu().numpy()


DECODERS: dict[str, Reader] = {"av": _read_pyav, "torchcodec": _read_torchcodec}
"""By module, from the most robust on."""

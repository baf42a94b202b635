"""Open containers of clips and recordings with PyAV, by a list of demuxers and without access to anything else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from .limits import Deadline, MediaLimitError, MediaLimits
from .source import Source, open_source

DEMUXERS = (
    "mov",
    "matroska",
    "avi",
    "mpeg",
    "mpegts",
    "mpegvideo",
    "m4v",
    "flv",
    "asf",
    "ogg",
    "gif",
    "wav",
    "w64",
    "flac",
    "mp3",
    "aac",
    "ac3",
    "aiff",
    "au",
    "caf",
    "amr",
    "wv",
)
"""FFmpeg's demuxers of self-contained files; playlists (hls, concat, dash), session descriptions (sdp) and image
sequences are left out, as they open other files and addresses."""

PROTOCOLS = "none"
"""No protocol has this name: FFmpeg reads the open file that it is given, and can open nothing by itself."""


@contextmanager
def open_container(source: Source, limits: MediaLimits) -> Iterator[tuple[Any, Deadline]]:
    """Open a file or its bytes as an `av` container, with the time until which it is to be read.

    Raises:
        MediaLimitError: the file is too large, or reading it takes too long.
        OSError, av.FFmpegError: it is no container of `DEMUXERS`.
    """
    import av

    deadline = Deadline(limits)
    options = {
        "format_whitelist": ",".join(DEMUXERS),
        "protocol_whitelist": PROTOCOLS,
        "max_pixels": str(limits.frame_pixels),
        "max_streams": "100",
    }
    try:
        with (
            open_source(source, limits) as file,
            av.open(_TimedReader(file, deadline), "r", options=options) as container,
        ):
            for stream in container.streams.video:
                if stream.codec_context is not None:
                    stream.codec_context.options = {"max_pixels": str(limits.frame_pixels)}
            yield container, deadline
    except av.ArgumentError as error:  # FFmpeg's word for all of these
        raise MediaLimitError(
            "it is damaged, is no supported container of clips or sound, or has frames above the limit "
            f"frame_pixels={limits.frame_pixels}"
        ) from error


class _TimedReader:
    """A file that cannot be read after a deadline: a demuxer may search a hostile file for ever."""

    def __init__(self, file: BinaryIO, deadline: Deadline):
        self._file, self._deadline = file, deadline
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int) -> bytes:
        self._deadline.check()
        return self._file.read(count)

"""Sound as the models take it: one channel, at one rate, read and resampled with PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .container import open_container
from .limits import DEFAULT_LIMITS, Deadline, MediaLimits
from .source import Source, error_reason, source_name

MAX_RATE = 768_000
"""Samples per second; the fastest converters in use."""


class AudioError(ValueError):
    """A recording cannot be read; the message says which and why."""


def read_audio(source: Source, rate: int, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Return a sound file, or its bytes, as one channel (samples,) of `float32` in [-1, 1] at `rate` per second.

    Several channels are averaged.

    Raises:
        AudioError: it cannot be decoded, has no sound, or exceeds a limit.
        ImportError: PyAV is not installed.
    """
    import av  # noqa: F401  # what is missing is not the recording

    try:
        with open_container(source, limits) as (container, deadline):
            if not container.streams.audio:
                raise AudioError("it has no sound")
            stream = container.streams.audio[0]
            _check_length(_declared_seconds(container, stream), limits)
            return _resampled(_channels(container.decode(stream), limits, deadline), rate)
    except Exception as error:  # PyAV raises a dozen kinds
        raise AudioError(f"Cannot read {source_name(source, 'a recording')}: {error_reason(error)}.") from error


def resample(samples: Any, rate: Any, to_rate: int, limits: MediaLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Return one channel (samples,) at another rate, as `float32` in [-1, 1]; integers are scaled by their type.

    Raises:
        AudioError: the samples are none, no numbers, or of several channels, or the rate is none.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise AudioError(
            f"The samples have the shape {samples.shape}; a recording is one channel (samples,), so average the "
            "channels first."
        )
    if not samples.size:
        raise AudioError("The recording has no samples.")
    if samples.dtype.kind not in "iuf":
        raise AudioError(f"The samples are of type {samples.dtype}; a recording holds floats in -1 to 1 or integers.")
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not 1 <= rate <= MAX_RATE:
        raise AudioError(f"The sampling rate is {rate!r}; it takes a number of samples per second, 1 to {MAX_RATE}.")
    try:
        _check_length(len(samples) / rate, limits)
    except ValueError as error:
        raise AudioError(f"The recording is too long: {error}.") from error
    channel = np.ascontiguousarray(_to_floats(samples))
    return channel if rate == to_rate else _resampled(iter([(channel, int(rate))]), to_rate)


def _declared_seconds(container: Any, stream: Any) -> float:
    """Return the longer of the lengths that the container and the stream declare, 0 where they do not."""
    import av

    of_stream = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    return max(of_stream, (container.duration or 0) / av.time_base)


def _check_length(seconds: float, limits: MediaLimits) -> None:
    limits.check("recording_seconds", seconds, f"it has {math.ceil(seconds)} seconds of sound")


def _channels(frames: Any, limits: MediaLimits, deadline: Deadline) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the mean of the channels of each frame, and its rate; FFmpeg's own downmix gains with every channel."""
    import av

    # Interleaved: PyAV 18 reads beyond the planes of planar frames of 8 channels or more.
    interleave = av.AudioResampler(format="flt")
    seconds = 0.0
    for frame in frames:
        deadline.check()
        if not 1 <= frame.sample_rate <= MAX_RATE:
            raise AudioError(f"its sampling rate is {frame.sample_rate}, and supported are 1 to {MAX_RATE}")
        seconds += frame.samples / frame.sample_rate
        _check_length(seconds, limits)
        for part in interleave.resample(frame):
            channels = part.to_ndarray().reshape(-1, part.layout.nb_channels)  # (1, samples * C) -> (samples, C)
            yield np.ascontiguousarray(channels.mean(axis=1, dtype=np.float32)), frame.sample_rate


def _to_floats(values: np.ndarray) -> np.ndarray:
    """Return samples as `float32` in [-1, 1]: unsigned integers have their zero in the middle of the range."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    half = 2.0 ** (8 * values.dtype.itemsize - 1)
    return ((values - half if values.dtype.kind == "u" else values) / half).astype(np.float32)


def _resampled(channels: Iterator[tuple[np.ndarray, int]], rate: int) -> np.ndarray:
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    parts = []
    for samples, from_rate in channels:
        if not samples.size:
            continue
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")  # (samples,) -> (1, samples)
        frame.sample_rate = from_rate
        parts += resampler.resample(frame)
    if not parts:
        raise AudioError("it has no samples")
    parts += resampler.resample(None)  # what the filter holds back
    return np.concatenate([part.to_ndarray()[0] for part in parts])

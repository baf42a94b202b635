"""Sound as the models take it: one channel, at one rate, read and resampled with PyAV."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from .video import reason


class AudioError(ValueError):
    """A recording cannot be read; the message says which and why."""


def read_audio(source: str | Path | bytes, rate: int) -> np.ndarray:
    """Return a sound file, or its bytes, as one channel (samples,) of `float32` in [-1, 1] at `rate` per second.

    Raises:
        AudioError: it cannot be decoded, or has no sound.
        ImportError: PyAV is not installed.
    """
    import av

    name = "a recording" if isinstance(source, bytes) else Path(source).name
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r") as container:
            if not container.streams.audio:
                raise AudioError(f"Cannot read {name}: it has no sound.")
            return _resampled(container.decode(container.streams.audio[0]), rate, name)
    except AudioError:
        raise
    except Exception as error:  # PyAV raises a dozen kinds
        raise AudioError(f"Cannot read {name}: {reason(error)}.") from error


def resample(samples: np.ndarray, rate: int, to_rate: int) -> np.ndarray:
    """Return one channel (samples,) at another rate, as `float32`."""
    import av

    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if rate == to_rate:
        return samples
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = rate
    return _resampled([frame], to_rate, "the samples")


def _resampled(frames: Any, rate: int, name: str) -> np.ndarray:
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    parts = [part for frame in frames for part in resampler.resample(frame)]
    if not parts:
        raise AudioError(f"Cannot read {name}: it has no samples.")
    parts += resampler.resample(None)  # what the filter holds back
    return np.concatenate([part.to_ndarray()[0] for part in parts])

"""Pipelines of clips and of sound, read with PyAV and sampled or resampled as the models take them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from transformers.pipelines.audio_classification import AudioClassificationPipeline
from transformers.pipelines.automatic_speech_recognition import AutomaticSpeechRecognitionPipeline
from transformers.pipelines.video_classification import VideoClassificationPipeline

from ..media.audio import AudioError, read_audio, resample
from ..media.limits import DEFAULT_LIMITS, MediaLimits
from ..media.links import fetch
from ..media.source import error_reason
from ..media.video import VideoError, frame_count, is_frame, read_frames, stack_frames
from .limited import LimitsMedia

logger = logging.getLogger(__name__)


class NotesErrors(LimitsMedia):
    """Unreadable inputs in a list yield an error entry; a blank input takes their slot in the batch."""

    def run_single(self, inputs: Any, preprocess_params: Any, forward_params: Any, postprocess_params: Any) -> Any:
        """Classify one input, raising what a list would note in its result."""
        preprocess_params = {**preprocess_params, "skip_unreadable": False}
        return super().run_single(inputs, preprocess_params, forward_params, postprocess_params)

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        error = model_inputs.pop("error")
        return {"logits": self.model(**model_inputs).logits, "error": error}

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return labels and scores of one input, or its error."""
        if model_outputs["error"] is not None:
            return _unread(model_outputs["error"])
        plain: Any = super().postprocess  # type: ignore[safe-super]
        return plain(SimpleNamespace(logits=model_outputs["logits"]), **kwargs)


class UniformVideoPipeline(NotesErrors, VideoClassificationPipeline):  # type: ignore[misc]
    """Video classification on frames sampled uniformly over the clip, from files, bytes or frames already decoded.

    A clip is a path, a link, the bytes of a file, an array (T, H, W, 3) or a list of T frames; a list or generator of
    clips gives a list of results. A clip with fewer frames than the model takes repeats its last one. A clip that
    cannot be read, or that the processor refuses, raises a `VideoError` if it is the only one; in a list or generator
    its result is `[{"label": None, "score": 0.0, "error": "..."}]`, and the others are not affected.
    """

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Classify a clip or several; `num_frames` and `decoder` (`"av"` or `"torchcodec"`) beside the usual."""
        if isinstance(inputs, list) and inputs and all(is_frame(frame) for frame in inputs):
            inputs = stack_frames(inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, decoder: str | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if kwargs.pop("frame_sampling_rate", None) is not None:
            raise ValueError("Frames are sampled uniformly over the clip, so there is no `frame_sampling_rate`.")
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess if decoder is None else {**preprocess, "decoder": decoder}, forward, postprocess

    def preprocess(  # type: ignore[override]
        self,
        video: Any,
        num_frames: int | None = None,
        decoder: str | None = None,
        skip_unreadable: bool = True,
        media_limits: MediaLimits = DEFAULT_LIMITS,
    ) -> dict[str, Any]:
        """Return the model's inputs for one clip; of an unreadable one a blank clip, and the error."""
        num_frames = num_frames or frame_count(self.model.config)
        try:
            return {**self._read_and_process(video, num_frames, decoder, media_limits), "error": None}
        except VideoError as unreadable:
            if not skip_unreadable:
                raise
            logger.warning("%s", unreadable)
            blank = np.zeros((num_frames, 64, 64, 3), dtype=np.uint8)
            return {**self._process(blank), "error": str(unreadable)}

    def _read_and_process(self, video: Any, num_frames: int, decoder: str | None, limits: MediaLimits) -> Any:
        frames = read_frames(fetch(video, VideoError, limits), num_frames, decoder=decoder, limits=limits)
        try:
            return self._process(frames)
        except ImportError:
            raise  # what is missing is not the clip
        except Exception as error:  # a processor is free to raise anything
            height, width = frames.shape[1:3]
            raise VideoError(f"Cannot process a clip of {height} x {width} pixels: {error_reason(error)}.") from error

    def _process(self, frames: np.ndarray) -> Any:
        if self.video_processor is not None:
            inputs = self.video_processor(list(frames), do_sample_frames=False, return_tensors="pt")
        else:
            inputs = self.image_processor(list(frames), return_tensors="pt")  # type: ignore[misc]
        return inputs.to(self.dtype)


class ResamplingAudioPipeline(NotesErrors, AudioClassificationPipeline):  # type: ignore[misc]
    """Audio classification that reads and resamples with PyAV, so that it needs neither ffmpeg nor torchaudio.

    A recording is a path, a link, the bytes of a file, samples, or a dictionary of samples with their rate. One that
    cannot be read, or that the processor refuses, raises an `AudioError` if it is the only one; in a list or generator
    its result is `[{"label": None, "score": 0.0, "error": "..."}]`, and the others are not affected.
    """

    def preprocess(  # type: ignore[override]
        self, inputs: Any, skip_unreadable: bool = True, media_limits: MediaLimits = DEFAULT_LIMITS
    ) -> dict[str, Any]:
        """Return the model's inputs for one recording; of an unreadable one a second of silence, and the error."""
        rate = self.feature_extractor.sampling_rate  # type: ignore[union-attr]
        try:
            return {**self._read_and_process(inputs, rate, media_limits), "error": None}
        except AudioError as unreadable:
            if not skip_unreadable:
                raise
            logger.warning("%s", unreadable)
            return {**super().preprocess(np.zeros(rate, dtype=np.float32)), "error": str(unreadable)}

    def _read_and_process(self, inputs: Any, rate: int, limits: MediaLimits) -> Any:
        samples = _samples(fetch(inputs, AudioError, limits), rate, limits)
        try:
            return super().preprocess(samples)
        except ImportError:
            raise  # what is missing is not the recording
        except Exception as error:  # a processor is free to raise anything
            raise AudioError(f"Cannot process a recording: {error_reason(error)}.") from error


class ResamplingSpeechPipeline(LimitsMedia, AutomaticSpeechRecognitionPipeline):  # type: ignore[misc]
    """Speech recognition that reads and resamples with PyAV, so that it needs neither ffmpeg nor torchaudio.

    A recording is a path, a link, the bytes of a file, samples, or a dictionary of samples with their rate. Timestamps
    of words need every frame: merge with `restore=True` for these.
    """

    def preprocess(self, inputs: Any, media_limits: MediaLimits = DEFAULT_LIMITS, **kwargs: Any) -> Any:  # type: ignore[override]
        """Yield the model's inputs for each piece of one recording.

        Raises:
            AudioError, MediaLimitError: it cannot be read, or is too large.
        """
        rate = self.feature_extractor.sampling_rate  # type: ignore[union-attr]
        samples = _samples(fetch(inputs, AudioError, media_limits), rate, media_limits)
        yield from super().preprocess(samples, **kwargs)


def _samples(recording: Any, rate: int, limits: MediaLimits) -> np.ndarray:
    """Return a file, its bytes, samples, or a dictionary of samples with their rate as samples at `rate`."""
    if isinstance(recording, (str, Path, bytes)):
        return read_audio(recording, rate, limits)
    if not isinstance(recording, dict):
        return resample(recording, rate, rate, limits)
    samples = next((recording[name] for name in ("raw", "array") if recording.get(name) is not None), None)
    if samples is None:
        raise AudioError(
            f"The recording has the keys {', '.join(map(repr, recording))}; it needs 'array' (or 'raw') and "
            "'sampling_rate'."
        )
    return resample(samples, recording.get("sampling_rate", rate), rate, limits)


def _unread(error: str) -> list[dict[str, Any]]:
    return [{"label": None, "score": 0.0, "error": error}]

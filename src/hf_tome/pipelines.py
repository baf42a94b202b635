"""`pipeline`: transformers' pipelines with merging applied; those for clips and sound read them more robustly."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import transformers
from transformers import PreTrainedModel
from transformers.pipelines.audio_classification import AudioClassificationPipeline
from transformers.pipelines.video_classification import VideoClassificationPipeline

from .api import apply, towers
from .config import MergeConfig
from .config.merge_config import CONFIG_NAME
from .hub.save_load import CONFIG_KEY, HUB_ARGUMENTS, find_merge_config
from .hub.sources import is_folder
from .media.audio import AudioError, read_audio, resample
from .media.video import VideoError, frame_count, is_frame, read_frames, reason, stack_frames

logger = logging.getLogger(__name__)


class _NotesErrors(transformers.Pipeline):
    """What is unreadable in a list has an error for a result, whose inputs stand in for its own in the batch."""

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


class UniformVideoPipeline(_NotesErrors, VideoClassificationPipeline):  # type: ignore[misc]
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
        self, video: Any, num_frames: int | None = None, decoder: str | None = None, skip_unreadable: bool = True
    ) -> dict[str, Any]:
        """Return the model's inputs for one clip; of an unreadable one a blank clip, and the error."""
        num_frames = num_frames or frame_count(self.model.config)
        try:
            return {**self._read_and_process(video, num_frames, decoder), "error": None}
        except VideoError as unreadable:
            if not skip_unreadable:
                raise
            logger.warning("%s", unreadable)
            blank = np.zeros((num_frames, 64, 64, 3), dtype=np.uint8)
            return {**self._process(blank), "error": str(unreadable)}

    def _read_and_process(self, video: Any, num_frames: int, decoder: str | None) -> Any:
        frames = read_frames(_fetch(video, VideoError), num_frames, decoder=decoder)
        try:
            return self._process(frames)
        except ImportError:
            raise  # what is missing is not the clip
        except Exception as error:  # a processor is free to raise anything
            height, width = frames.shape[1:3]
            raise VideoError(f"Cannot process a clip of {height} x {width} pixels: {reason(error)}.") from error

    def _process(self, frames: np.ndarray) -> Any:
        if self.video_processor is not None:
            inputs = self.video_processor(list(frames), do_sample_frames=False, return_tensors="pt")
        else:
            inputs = self.image_processor(list(frames), return_tensors="pt")  # type: ignore[misc]
        return inputs.to(self.dtype)


class ResamplingAudioPipeline(_NotesErrors, AudioClassificationPipeline):  # type: ignore[misc]
    """Audio classification that reads and resamples with PyAV, so that it needs neither ffmpeg nor torchaudio.

    A recording is a path, a link, the bytes of a file, samples, or a dictionary of samples with their rate. One that
    cannot be read, or that the processor refuses, raises an `AudioError` if it is the only one; in a list or generator
    its result is `[{"label": None, "score": 0.0, "error": "..."}]`, and the others are not affected.
    """

    def preprocess(self, inputs: Any, skip_unreadable: bool = True) -> dict[str, Any]:  # type: ignore[override]
        """Return the model's inputs for one recording; of an unreadable one a second of silence, and the error."""
        rate = self.feature_extractor.sampling_rate  # type: ignore[union-attr]
        try:
            return {**self._read_and_process(inputs, rate), "error": None}
        except AudioError as unreadable:
            if not skip_unreadable:
                raise
            logger.warning("%s", unreadable)
            return {**super().preprocess(np.zeros(rate, dtype=np.float32)), "error": str(unreadable)}

    def _read_and_process(self, inputs: Any, rate: int) -> Any:
        inputs = _fetch(inputs, AudioError)
        if isinstance(inputs, (str, Path, bytes)):
            inputs = read_audio(inputs, rate)
        try:
            if isinstance(inputs, dict) and inputs.get("sampling_rate", rate) != rate:
                samples = inputs["raw"] if inputs.get("raw") is not None else inputs["array"]
                inputs = resample(np.asarray(samples), inputs["sampling_rate"], rate)
            return super().preprocess(inputs)
        except ImportError:
            raise  # what is missing is not the recording
        except Exception as error:  # a processor is free to raise anything
            raise AudioError(f"Cannot process a recording: {reason(error)}.") from error


TASKS: dict[str, type[transformers.Pipeline] | None] = {
    "image-classification": None,
    "zero-shot-image-classification": None,
    "video-classification": UniformVideoPipeline,
    "image-feature-extraction": None,
    "audio-classification": ResamplingAudioPipeline,
    "image-text-to-text": None,
}
"""By task, the pipeline class, or `None` for transformers' own."""


def pipeline(
    task: str,
    model: str | Path | PreTrainedModel,
    *,
    merge_config: MergeConfig | None = None,
    **kwargs: Any,
) -> transformers.Pipeline:
    """Return `transformers.pipeline` with merging applied to its model.

    Args:
        task (`str`): one of `TASKS`. `image-feature-extraction` returns the tokens that are left, which are fewer.
        model: Hub id, folder, or a model object, which is merged in place; it takes its processors as arguments, as in
            transformers.
        merge_config (`MergeConfig`, *optional*): beats the `merge_config.json` saved with the model, which beats the
            key `merge_config` of its `config.json`. A model object to which `apply` was called keeps its config.
        kwargs: for `transformers.pipeline`.

    Raises:
        ValueError: another task, no merge config anywhere, or `dtype` for a model object, which transformers ignores.
        UnsupportedModelError: see `apply`.
    """
    if task not in TASKS:
        raise ValueError(f"`task` is {task!r}; it takes one of {', '.join(map(repr, TASKS))}.")
    if isinstance(model, PreTrainedModel):
        dtype = kwargs.get("dtype", "auto")
        if dtype not in ("auto", None, model.dtype, str(model.dtype).removeprefix("torch.")):
            raise ValueError(
                f"`dtype` is {dtype}, but the model is an object in {model.dtype} already, and transformers would "
                "ignore it. Leave `dtype` out, and call `model.to(dtype)` first if you want another."
            )
        config = merge_config or _config_of(model)
    else:
        model = str(model)
        is_folder(model, "model")  # a path that is none would be taken for a Hub id
        config = merge_config or _saved_config(model, kwargs)
    if config is None:
        raise ValueError(
            f"There is no merge config: {_name(model)} has neither a {CONFIG_NAME} nor the key {CONFIG_KEY!r} in its "
            "config.json; pass `merge_config=MergeConfig(r=16)`."
        )
    if TASKS[task] is not None:
        kwargs.setdefault("pipeline_class", TASKS[task])
    kwargs["trust_remote_code"] = kwargs.get("trust_remote_code") or False  # `None` asks on standard input
    build: Any = transformers.pipeline  # its overloads are of no help to keyword arguments passed on
    return apply(build(task, model, **kwargs), config)


def _config_of(model: PreTrainedModel) -> MergeConfig | None:
    merged = towers(model)
    if merged:
        return merged[0].config
    values = getattr(model.config, CONFIG_KEY, None)
    return None if values is None else MergeConfig.from_dict(values)


def _saved_config(model: str, kwargs: dict[str, Any]) -> MergeConfig | None:
    given = {**(kwargs.get("model_kwargs") or {}), **kwargs}
    hub = {name: given[name] for name in HUB_ARGUMENTS if name in given}
    return find_merge_config(model, trust_remote_code=given.get("trust_remote_code"), **hub)


def _name(model: str | PreTrainedModel) -> str:
    return model if isinstance(model, str) else f"this {type(model).__name__}"


def _unread(error: str) -> list[dict[str, Any]]:
    return [{"label": None, "score": 0.0, "error": error}]


def _fetch(source: Any, failure: type[Exception]) -> Any:
    """Download what a link names; raises `failure` where that fails."""
    if not (isinstance(source, str) and source.startswith(("http://", "https://"))):
        return source
    from huggingface_hub.utils import httpx

    try:
        return httpx.get(source, follow_redirects=True).raise_for_status().content
    except Exception as error:  # httpx has no one class for all of its own
        raise failure(f"Cannot fetch {source}: {reason(error)}.") from error

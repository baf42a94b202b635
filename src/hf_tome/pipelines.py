"""`pipeline`: transformers' pipelines with merging applied; those that read media do so robustly and within limits."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.pipelines.audio_classification import AudioClassificationPipeline
from transformers.pipelines.automatic_speech_recognition import AutomaticSpeechRecognitionPipeline
from transformers.pipelines.depth_estimation import DepthEstimationPipeline
from transformers.pipelines.image_classification import ImageClassificationPipeline
from transformers.pipelines.image_feature_extraction import ImageFeatureExtractionPipeline
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
from transformers.pipelines.object_detection import ObjectDetectionPipeline
from transformers.pipelines.video_classification import VideoClassificationPipeline
from transformers.pipelines.zero_shot_image_classification import ZeroShotImageClassificationPipeline
from transformers.pipelines.zero_shot_object_detection import ZeroShotObjectDetectionPipeline

from .api import apply, get_config, targets
from .config import MergeConfig
from .config.json_file import CONFIG_NAME
from .hub.save_load import CONFIG_KEY, HUB_ARGUMENTS, find_merge_config
from .hub.sources import is_folder
from .media.audio import AudioError, read_audio, resample
from .media.chats import open_images, open_messages
from .media.limits import DEFAULT_LIMITS, MediaLimits
from .media.links import fetch, open_linked_image
from .media.source import error_reason
from .media.video import VideoError, frame_count, is_frame, read_frames, stack_frames

logger = logging.getLogger(__name__)

USUAL_RATE = 16_000
"""Samples per second of sound in chats, where no feature extractor says; transformers' own default."""


class _LimitsMedia(transformers.Pipeline):
    """Adds the argument `media_limits`, of the pipeline or of a call."""

    def _sanitize_parameters(self, media_limits: MediaLimits | None = None, **kwargs: Any) -> Any:
        plain: Any = super()._sanitize_parameters  # type: ignore[safe-super]
        preprocess, forward, postprocess = plain(**kwargs)
        if media_limits is not None:
            preprocess = {**preprocess, "media_limits": media_limits}
        return preprocess, forward, postprocess


class _ReadsImages(_LimitsMedia):
    """Reads images within limits, and converts them to RGB by what their modes mean; see `read_image`."""

    def preprocess(self, image: Any, media_limits: MediaLimits = DEFAULT_LIMITS, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the model's inputs for one image.

        Raises:
            ImageError, MediaLimitError: it cannot be read, or is too large.
        """
        plain: Any = super().preprocess  # type: ignore[safe-super]
        return plain(open_linked_image(image, media_limits, kwargs.get("timeout")), **kwargs)


class LimitedImagePipeline(_ReadsImages, ImageClassificationPipeline):  # type: ignore[misc]
    """Image classification that checks an image before it decodes it."""


class LimitedZeroShotPipeline(_ReadsImages, ZeroShotImageClassificationPipeline):  # type: ignore[misc]
    """Zero-shot image classification that checks an image before it decodes it."""


class LimitedDepthPipeline(_ReadsImages, DepthEstimationPipeline):  # type: ignore[misc]
    """Depth estimation that checks an image before it decodes it."""


class LimitedSegmentationPipeline(_ReadsImages, ImageSegmentationPipeline):  # type: ignore[misc]
    """Segmentation that checks an image before it decodes it."""


class LimitedDetectionPipeline(_ReadsImages, ObjectDetectionPipeline):  # type: ignore[misc]
    """Object detection that checks an image before it decodes it."""


class LimitedZeroShotDetectionPipeline(_ReadsImages, ZeroShotObjectDetectionPipeline):  # type: ignore[misc]
    """Detection of what is named, that checks an image before it decodes it."""

    def preprocess(self, inputs: Any, media_limits: MediaLimits = DEFAULT_LIMITS, **kwargs: Any) -> Any:  # type: ignore[override]
        """Yield the model's inputs for each name and one image (see the base class)."""
        image = open_linked_image(inputs["image"], media_limits, kwargs.get("timeout"))
        yield from ZeroShotObjectDetectionPipeline.preprocess(self, {**inputs, "image": image}, **kwargs)


class LimitedImageTextPipeline(_LimitsMedia, ImageTextToTextPipeline):  # type: ignore[misc]
    """Text about images, alone or in chats, which are checked before they are decoded; so are clips and recordings."""

    def preprocess(self, inputs: Any = None, media_limits: MediaLimits = DEFAULT_LIMITS, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the model's inputs for a chat, a text, or images and a text.

        Raises:
            ImageError, VideoError, AudioError, MediaLimitError: a file cannot be read, or is too large.
        """
        plain, timeout = super().preprocess, kwargs.get("timeout")
        if isinstance(inputs, dict) and "images" in inputs:
            return plain({**inputs, "images": open_images(inputs["images"], media_limits, timeout)}, **kwargs)
        if not hasattr(inputs, "messages"):
            return plain(inputs, **kwargs)
        extractor = getattr(self.processor, "feature_extractor", None)
        rate = getattr(extractor, "sampling_rate", None) or USUAL_RATE
        with open_messages(inputs.messages, rate, media_limits, timeout) as messages:
            model_inputs = plain(type(inputs)(messages), **kwargs)
        model_inputs["text"] = inputs  # the result names the chat as it was asked
        return model_inputs


class _NotesErrors(_LimitsMedia):
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


class ResamplingAudioPipeline(_NotesErrors, AudioClassificationPipeline):  # type: ignore[misc]
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


class ResamplingSpeechPipeline(_LimitsMedia, AutomaticSpeechRecognitionPipeline):  # type: ignore[misc]
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


class MergedFeaturesPipeline(_ReadsImages, ImageFeatureExtractionPipeline):  # type: ignore[misc]
    """Image features without padding: each image of a batch gets the rows that it gets alone."""

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        recorders = [target.recorder for target in targets(self.model)]
        with ExitStack() as readers:
            for recorder in recorders:
                readers.enter_context(recorder.reader())
            outputs = super()._forward(model_inputs)
            results = [result for recorder in recorders if (result := recorder.result()) is not None]
        features = outputs[0]  # (B, M, C), or logits
        num_rows = torch.full((len(features),), features.shape[1])
        for result in results:
            if result.padded and result.size is not None and features.shape[:-1] == result.size.shape[:-1]:
                num_rows = (result.size[..., 0] > 0).sum(dim=1)  # padding has size 0, and stands last
        pooled = {"pooler_output": outputs["pooler_output"]} if "pooler_output" in outputs else {}
        return {"features": features, "num_rows": num_rows, **pooled}

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the features of one image, (1, M, C)."""
        features = model_outputs["features"][:, : int(model_outputs["num_rows"])]
        pooled = model_outputs.get("pooler_output")
        return super().postprocess(BaseModelOutputWithPooling(features, pooled), **kwargs)


PIPELINE_CLASSES: dict[str, type[transformers.Pipeline]] = {
    "image-classification": LimitedImagePipeline,
    "zero-shot-image-classification": LimitedZeroShotPipeline,
    "video-classification": UniformVideoPipeline,
    "image-feature-extraction": MergedFeaturesPipeline,
    "audio-classification": ResamplingAudioPipeline,
    "automatic-speech-recognition": ResamplingSpeechPipeline,
    "depth-estimation": LimitedDepthPipeline,
    "image-segmentation": LimitedSegmentationPipeline,
    "object-detection": LimitedDetectionPipeline,
    "zero-shot-object-detection": LimitedZeroShotDetectionPipeline,
    "image-text-to-text": LimitedImageTextPipeline,
}
"""By task, the pipeline class."""


def pipeline(
    task: str,
    model: str | Path | PreTrainedModel,
    *,
    merge_config: MergeConfig | None = None,
    **kwargs: Any,
) -> transformers.Pipeline:
    """Return `transformers.pipeline` with merging applied to its model.

    Args:
        task (`str`): a key of `PIPELINE_CLASSES`. `image-feature-extraction` returns the tokens that are left,
            which are fewer.
        model: Hub id, folder, or a model object, which is merged in place; it takes its processors as arguments, as in
            transformers.
        merge_config (`MergeConfig`, *optional*): beats the `merge_config.json` saved with the model, which beats the
            key `merge_config` of its `config.json`. A model object to which `apply` was called keeps its config.
        kwargs: for `transformers.pipeline`.

    Raises:
        ValueError: another task, no merge config anywhere, or `dtype` for a model object, which transformers ignores.
        UnsupportedModelError: see `apply`.
    """
    if task not in PIPELINE_CLASSES:
        raise ValueError(f"`task` is {task!r}; it takes one of {', '.join(map(repr, PIPELINE_CLASSES))}.")
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
    kwargs.setdefault("pipeline_class", PIPELINE_CLASSES[task])
    kwargs["trust_remote_code"] = kwargs.get("trust_remote_code") or False  # `None` asks on standard input
    build: Any = transformers.pipeline  # its overloads are of no help to keyword arguments passed on
    return apply(build(task, model, **kwargs), config)


def _config_of(model: PreTrainedModel) -> MergeConfig | None:
    merged = get_config(model)
    if merged is not None:
        return merged
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

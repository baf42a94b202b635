"""`pipeline`: the classes by task, and merging applied to what transformers builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from ..api import apply, get_config
from ..config import MergeConfig
from ..config.json_file import CONFIG_NAME
from ..hub.save_load import CONFIG_KEY, HUB_ARGUMENTS, find_merge_config
from ..hub.shipped import shipped_model
from ..hub.sources import is_folder
from .clips import ResamplingAudioPipeline, ResamplingSpeechPipeline, UniformVideoPipeline
from .images import (
    LimitedDepthPipeline,
    LimitedDetectionPipeline,
    LimitedImagePipeline,
    LimitedImageTextPipeline,
    LimitedSegmentationPipeline,
    LimitedZeroShotDetectionPipeline,
    LimitedZeroShotPipeline,
    MergedFeaturesPipeline,
)

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
        model: Hub id, folder, name of a model that ships with the package, or a model object, which is merged in
            place; it takes its processors as arguments, as in transformers.
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
        model = shipped_model(str(model))
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

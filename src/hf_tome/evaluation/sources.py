"""Build a job from what a notebook has at hand: a model or its name, a data set or its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ..api import merged, targets
from ..config import MergeConfig
from ..hub.save_load import load_unmerged
from ..hub.shipped import shipped_model
from ..hub.sources import is_folder, naming
from ..patching.unwrap import unwrap
from .job import Job
from .options import JobOptions
from .tasks.registry import build_job

TASK_CLASSES: dict[str, Mapping[str, Any]] = {
    "image-classification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "video-classification": modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    "audio-classification": modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    "zero-shot-image-classification": modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "semantic-segmentation": {
        **modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    },
    "depth-estimation": modeling_auto.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES,
    "object-detection": modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
    "zero-shot-object-detection": modeling_auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES,
    "automatic-speech-recognition": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
}
"""By task, the classes of the models that can have no other; models that generate text have two."""


class UnknownTaskError(ValueError):
    """The class of a model does not tell what task to evaluate."""


def job_from(
    model: Any,
    data: Any,
    *,
    task: str | None = None,
    processor: Any = None,
    device: str | None = None,
    labels: str | Path | None = None,
    class_names: str | Path | None = None,
    templates: str | Path | None = None,
    build: Callable[[str, JobOptions], Job] = build_job,
    **options: Any,
) -> Job:
    """Return the job of evaluating a model on data.

    Args:
        model: a model, or a pipeline around one, as it is and where it is; or a Hub id, a folder, or the name of a
            model that ships with the package, such as `digits-vit`.
        data: a `datasets.Dataset` or `DatasetDict`, a folder, a Hub id, or `digits`.
        task (`str`, *optional*): by default the one that the model's class has.
        processor (*optional*): of a model object; by default the one saved where the model came from.
        device (`str`, *optional*): of a model that is loaded here; by default the GPU where there is one.
        build: makes the job of the task and the options.
        labels, class_names, templates, options: the other fields of `JobOptions`.

    Raises:
        TypeError: the model or the data are of another type.
        UnknownTaskError: the task does not follow from the model.
        ValueError: what `build_job` raises.
        OSError: there is no such model.
    """
    files = {"labels": labels, "class_names": class_names, "templates": templates}
    paths: dict[str, Any] = {name: Path(path) for name, path in files.items() if path is not None}
    source = {**_model_options(model, processor, device), **_data_options(data)}
    return build(task or _task_of(source), JobOptions(**source, **paths, **options))


def model_from(model: Any, device: str | None = None, dtype: str = "float32") -> Any:
    """Return a model that is an object as it is, and load one that is named, in the class that it was saved as.

    Raises:
        ValueError: a device for a model that is on one.
        TypeError: it is no model.
        OSError: there is no such model.
    """
    if not isinstance(model, (str, os.PathLike)):
        if device is not None:
            raise ValueError(f"The model is in memory already; move it with `model.to({device!r})`.")
        return unwrap(model)
    source = shipped_model(os.fspath(model))
    is_folder(source, "model")  # a path that is none would be taken for a Hub id
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return load_unmerged(source, dtype=dtype).to(device or default).eval()


def image_tower(model: Any) -> Any:
    """Return the tower that merges of a model with a text tower, any other model as it is."""
    if not hasattr(getattr(model, "config", None), "text_config"):
        return model
    with merged(model, MergeConfig()):
        path = targets(model)[0].path
    return model.get_submodule(path)


def _model_options(model: Any, processor: Any, device: str | None) -> dict[str, Any]:
    if isinstance(model, (str, os.PathLike)):
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return {"model": shipped_model(os.fspath(model)), "processor": processor, "device": device or default}
    root = unwrap(model)
    if not isinstance(root, PreTrainedModel):
        raise TypeError(f"`model` is a {type(model).__name__}; it takes a transformers model, a folder or a Hub id.")
    if device is not None:
        raise ValueError(f"The model is in memory on {root.device} already; move it with `model.to({device!r})`.")
    name = getattr(root.config, "_name_or_path", "") or type(root).__name__
    chosen = processor if processor is not None else getattr(model, "processor", None) or _pipeline_processor(model)
    return {"model": str(name), "loaded": root, "processor": chosen, "device": str(root.device)}


def _pipeline_processor(model: Any) -> Any:
    """Return what a pipeline reads its images or sound with, `None` where `model` is no pipeline."""
    names = ("image_processor", "feature_extractor")
    return next((candidate for name in names if (candidate := getattr(model, name, None)) is not None), None)


def _data_options(data: Any) -> dict[str, Any]:
    if isinstance(data, (str, os.PathLike)):
        return {"data": os.fspath(data)}
    import datasets

    kinds = (datasets.Dataset, datasets.IterableDataset, datasets.DatasetDict, datasets.IterableDatasetDict)
    if not isinstance(data, kinds):
        raise TypeError(
            f"`data` is a {type(data).__name__}; it takes a datasets.Dataset, a folder or a Hub id. Of a list of "
            "dictionaries make one with datasets.Dataset.from_list."
        )
    first = next(iter(data.values())) if isinstance(data, dict) else data
    return {"data": getattr(first.info, "dataset_name", None) or "a data set in memory", "rows": data}


def _task_of(source: Mapping[str, Any]) -> str:
    """Return the task that a model's class has.

    Raises:
        ValueError: it is none of `TASK_CLASSES`.
    """
    if source.get("loaded") is not None:
        names = [type(source["loaded"]).__name__]
    else:
        is_folder(source["model"], "model")  # a path that is none would be taken for a Hub id
        with naming(source["model"], "model"):
            config = AutoConfig.from_pretrained(source["model"], trust_remote_code=False)
        names = list(config.architectures or ())
    for task, mapping in TASK_CLASSES.items():
        classes = [name for value in mapping.values() for name in ((value,) if isinstance(value, str) else value)]
        if not set(names).isdisjoint(classes):
            return task
    raise UnknownTaskError(
        f"The task does not follow from a model of class {', '.join(names) or 'unknown'}; pass `task=`, such as "
        "'image-classification', 'image-to-text' or 'visual-question-answering'."
    )

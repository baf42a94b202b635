"""The task `image-classification`: a classifier on labelled images, such as ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from . import data, digits, labels
from .data import LabelledImages, Sample
from .source import is_folder, public_name
from .task import Inputs, Job, JobOptions

TASK = "image-classification"


def image_classification(options: JobOptions) -> Job:
    """Load a classifier and the images to evaluate it on.

    Raises:
        ValueError: the data set cannot be opened, lacks the split, or has labels that the model does not have.
        OSError: there is no such model.
    """
    rows, split = data.open_split(options.data, options.split, streaming=options.streaming)
    model, processor = load_classifier(options)
    images = read_labelled_images(rows, split, model, options)
    return _job(public_name(options.model), model, processor, images)


def digits_classification(device: str = "cpu", dtype: str = "float32") -> Job:
    """Load the small ViT that ships with the package and the handwritten digits held out from its training."""
    options = JobOptions(str(digits.MODEL_DIR), "scikit-learn digits", device=device, dtype=dtype)
    model, processor = load_classifier(options)
    images = read_labelled_images(digits.load_digits("test"), "test", model, options)
    return _job("digits-vit", model, processor, images)


def load_classifier(options: JobOptions) -> tuple[PreTrainedModel, Any]:
    """Load a classifier, ready to run on the device, and its image processor.

    Raises:
        ValueError: the checkpoint has no classifier, which transformers would make up at random.
        OSError: there is no such model.
    """
    is_folder(options.model, "model")  # a path that is none would be taken for a Hub id
    processor = AutoImageProcessor.from_pretrained(options.model)
    model, loading = AutoModelForImageClassification.from_pretrained(
        options.model, dtype=options.dtype, output_loading_info=True
    )
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ValueError(
            f"{options.model} lacks weights of {type(model).__name__} ({missing}, ...), so it cannot classify images; "
            "give a model fine-tuned for image classification."
        )
    return model.to(options.device).eval(), processor


def read_labelled_images(rows: Any, split: str, model: PreTrainedModel, options: JobOptions) -> LabelledImages:
    """Match the labels of an opened split to the model's and draw the samples.

    Raises:
        ValueError: there is no image or label column, or a label that the model does not have.
    """
    image_column, label_column = data.image_and_label_columns(rows, options.data)
    names = data.label_names(rows, label_column, options.data)
    to_model = labels.match_labels(names, dict(model.config.id2label or {}), _class_names(options, split))
    return LabelledImages(
        name=public_name(options.data),
        split=split,
        rows=data.take(data.undecoded(rows, image_column), options.limit, options.seed),
        image_column=image_column,
        label_column=label_column,
        # A ClassLabel column holds indices into `names`, a column of strings the names.
        model_label=lambda label: to_model[label if isinstance(label, str) else names[label]],
    )


def _class_names(options: JobOptions, split: str) -> labels.ClassNames | None:
    if options.labels is not None:
        return labels.read_class_names(options.labels)
    return labels.find_class_names(Path(options.data).expanduser(), split)


def _job(name: str, model: PreTrainedModel, processor: Any, images: LabelledImages) -> Job:
    def prepare(samples: Sequence[Sample]) -> Inputs:
        return dict(processor([sample.image for sample in samples], return_tensors="pt"))

    return Job(TASK, name, model, images, prepare, class_scores)


def class_scores(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return the logits (B, classes) of a classifier."""
    return model(**inputs).logits

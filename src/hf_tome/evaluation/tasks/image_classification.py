"""The task `image-classification`: a classifier on labelled images, such as ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from ...hub.sources import public_name
from ..data import digits
from ..data import media_files as media
from ..data import splits as data
from ..data.samples import LabelledSamples, Sample
from ..job import Inputs, Job
from ..loading import load_model
from ..metrics.classes import ClassificationScorer
from ..options import JobOptions
from ..store.fingerprint import processor_settings

TASK = "image-classification"


def image_classification(options: JobOptions) -> Job:
    """Load a classifier and the images to evaluate it on.

    Raises:
        ValueError: the data set cannot be opened, lacks the split, or has labels that the model does not have.
        OSError: there is no such model.
    """
    opened, columns = media.open_media(options, "Image")
    model, processor = load_classifier(options)
    images = read_labelled_images(opened, columns, model, options)
    return _job(public_name(options.model), model, processor, images)


def digits_classification(device: str = "cpu", dtype: str = "float32") -> Job:
    """Load the small ViT that ships with the package and the handwritten digits held out from its training."""
    options = JobOptions(str(digits.MODEL_DIR), "scikit-learn digits", device=device, dtype=dtype)
    model, processor = load_classifier(options)
    opened = data.OpenedSplit(data.undecoded(digits.load_digits("test"), "Image"), "test", ())
    images = read_labelled_images(opened, ("image", "label"), model, options)
    return _job("digits-vit", model, processor, images)


def load_classifier(options: JobOptions) -> tuple[PreTrainedModel, Any]:
    """Load a classifier, ready to run on the device, and its image processor; raises as `load_model` does."""
    model = load_model(AutoModelForImageClassification, options, "classify images")
    return model, AutoImageProcessor.from_pretrained(options.model, trust_remote_code=False)


def read_labelled_images(
    opened: data.OpenedSplit, columns: tuple[str, str], model: PreTrainedModel, options: JobOptions
) -> LabelledSamples:
    """Match the labels of an opened split to the model's and draw the samples.

    Raises:
        ValueError: there is a label that the model does not have.
    """
    names, to_model = media.match_names(opened, columns[1], model.config.id2label, options)
    decode = partial(data.open_image, limits=options.media_limits)
    return media.match_rows(opened, columns, names, to_model, options, decode)


def _job(name: str, model: PreTrainedModel, processor: Any, images: LabelledSamples) -> Job:
    depends_on = {"processor": processor_settings(processor)}
    return Job(
        TASK,
        name,
        model,
        images,
        prepare_images(processor),
        class_scores,
        ClassificationScorer(),
        depends_on=depends_on,
    )


def prepare_images(processor: Any) -> Any:
    """Return the function that makes inputs of samples of images."""

    def prepare(samples: Sequence[Sample]) -> Inputs:
        return dict(processor(images=[sample.content for sample in samples], return_tensors="pt"))

    return prepare


def class_scores(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return the logits (B, classes) of a classifier."""
    return model(**inputs).logits

"""The task `image-classification`: a classifier on labelled images, such as ImageNet."""

from __future__ import annotations

from functools import partial

from transformers import AutoImageProcessor, AutoModelForImageClassification

from ...data import digits, splits
from ...data.media_files import open_media
from ...job import Job
from ...loading import load_processor, load_task_model
from ...options import JobOptions
from ..task import LABELLED, Task
from .labelled import class_scores, labelled_job, match_labels, prepare_images


def image_classification(options: JobOptions) -> Job:
    """Load a classifier and the images to evaluate it on.

    Raises:
        ValueError: the data set cannot be opened, lacks the split, or has labels that the model does not have.
        OSError: there is no such model.
    """
    return _job(options, *open_media(options, "Image"))


def digits_classification(device: str = "cpu", dtype: str = "float32") -> Job:
    """Load the small ViT that ships with the package and the handwritten digits held out from its training."""
    options = JobOptions(str(digits.MODEL_DIR), "scikit-learn digits", device=device, dtype=dtype)
    opened = splits.OpenedSplit(splits.undecoded(digits.load_digits("test"), "Image"), "test", ())
    return _job(options, opened, ("image", "label"))


def _job(options: JobOptions, opened: splits.OpenedSplit, columns: tuple[str, str]) -> Job:
    model = load_task_model(AutoModelForImageClassification, options, "classify images")
    processor = load_processor(AutoImageProcessor, options)
    decode = partial(splits.open_image, limits=options.media_limits)
    samples = match_labels(opened, columns, model, options, decode)
    return labelled_job(TASK.name, options, model, processor, samples, prepare_images(processor), class_scores)


TASK = Task("image-classification", image_classification, LABELLED)

"""The task `zero-shot-image-classification`: images against sentences about each class, with CLIP, SigLIP and such."""

from __future__ import annotations

from functools import partial

from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer

from ...data import media_files as media
from ...data.columns import label_names
from ...data.splits import open_image
from ...job import Job
from ...loading import load_processor, load_task_model
from ...options import JobOptions
from ..task import LABELLED, Task
from .labelled import labelled_job, prepare_images
from .zero_shot_classes import TEMPLATES, class_embeddings, find_classes, image_scores, read_templates


def zero_shot_classification(options: JobOptions) -> Job:
    """Load a model of images and text, the images, and what each class is called in each of the templates.

    Raises:
        ValueError: the data set cannot be opened, or the files of names or templates do not fit.
        OSError: there is no such model or file.
    """
    opened, columns = media.open_media(options, "Image")
    described = media.class_names(options, opened)
    names = label_names(opened.rows, columns[1], options.data, described)
    classes = find_classes(names, options.class_names, described)
    templates = read_templates(options.templates) if options.templates else list(TEMPLATES)
    model = load_task_model(AutoModelForZeroShotImageClassification, options, "match images with text")
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"{type(model).__name__} has no separate text tower; give a CLIP, SigLIP or the like.")
    processor = load_processor(AutoImageProcessor, options)
    decode = partial(open_image, limits=options.media_limits)
    samples = media.match_rows(opened, columns, names, dict(classes.index), options, decode)
    return labelled_job(
        TASK.name,
        options,
        model,
        processor,
        samples,
        prepare_images(processor),
        image_scores(class_embeddings(model, load_processor(AutoTokenizer, options), classes.names, templates)),
        settings={"classes": len(classes.names), "templates": len(templates), **_notes(classes.names)},
        outputs="probabilities" if getattr(model, "logit_bias", None) is None else "scores",
        depends_on={"class names": classes.names, "templates": templates},
    )


def _notes(names: list[str]) -> dict[str, list[str]]:
    if len(names) > 1:
        return {}
    return {"notes": [f"the only class is {names[0]!r}, so that every image is right: give --class-names of more"]}


TASK = Task("zero-shot-image-classification", zero_shot_classification, LABELLED | {"class_names", "templates"})

"""What the classification tasks share: a model's classes matched to the data's labels, and the job around both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ....hub.sources import public_name
from ...data import media_files as media
from ...data.samples import LabelledSamples, Sample
from ...data.splits import OpenedSplit
from ...job import Inputs, Job
from ...metrics.classes import ClassificationScorer
from ...options import JobOptions
from ...store.fingerprint import processor_settings


def labelled_job(
    task: str,
    options: JobOptions,
    model: PreTrainedModel,
    processor: Any,
    samples: LabelledSamples,
    prepare: Callable[[Sequence[Sample]], Inputs],
    run: Callable[[PreTrainedModel, Inputs], torch.Tensor],
    *,
    depends_on: dict[str, Any] | None = None,
    multi_label: bool = False,
    **job: Any,
) -> Job:
    """Return the job of scoring labelled samples by class; `run` returns scores (B, classes)."""
    depends_on = {**(depends_on or {}), "processor": processor_settings(processor)}
    name = public_name(options.model)
    scorer = ClassificationScorer(multi_label)
    return Job(task, name, model, samples, prepare, run, scorer, depends_on=depends_on, **job)


def match_labels(
    opened: OpenedSplit,
    columns: tuple[str, str],
    model: PreTrainedModel,
    options: JobOptions,
    decode: Callable[[Any], Any],
) -> LabelledSamples:
    """Return the samples drawn from an opened split, their labels matched to the model's classes.

    Raises:
        ValueError: a label has no name, or the model has no such class.
    """
    names, to_model = media.match_names(opened, columns[1], model.config.id2label, options)
    return media.match_rows(opened, columns, names, to_model, options, decode)


def prepare_images(processor: Any) -> Callable[[Sequence[Sample]], Inputs]:
    """Return the function that makes model inputs of samples of images."""

    def prepare(samples: Sequence[Sample]) -> Inputs:
        return dict(processor(images=[sample.content for sample in samples], return_tensors="pt"))

    return prepare


def class_scores(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return the logits (B, classes) of a classifier."""
    return model(**inputs).logits

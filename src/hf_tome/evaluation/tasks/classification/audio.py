"""The task `audio-classification`: a classifier on labelled recordings, with one label each or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, PreTrainedModel

from ....media.audio import read_audio
from ...data import media_files as media
from ...data.columns import has_several_labels
from ...data.samples import Sample
from ...job import Inputs, Job
from ...loading import load_processor, load_task_model
from ...options import JobOptions
from ..task import LABELLED, Task
from .labelled import class_scores, labelled_job, match_labels


def audio_classification(options: JobOptions) -> Job:
    """Load a classifier and the recordings to evaluate it on.

    Where the recordings have several labels, samples are scored by mean average precision too, and top-1 is right if
    any of the labels is ranked first.

    Raises:
        ValueError: there are no such recordings, or they have labels that the model does not have.
        OSError: there is no such model.
    """
    opened, columns = media.open_media(options, "Audio")
    model = load_task_model(AutoModelForAudioClassification, options, "classify recordings")
    extractor = load_processor(AutoFeatureExtractor, options)

    def decode(stored: Any) -> np.ndarray:
        return read_audio(media.stored_source(stored), extractor.sampling_rate, options.media_limits)

    def prepare(samples: Sequence[Sample]) -> Inputs:
        sounds = [sample.content for sample in samples]
        return dict(extractor(sounds, sampling_rate=extractor.sampling_rate, return_tensors="pt"))

    samples = match_labels(opened, columns, model, options, decode)
    several = has_several_labels(opened.rows, columns[1])
    run = label_probabilities if several else class_scores
    outputs = "independent" if several else "logits"
    common = (TASK.name, options, model, extractor, samples, prepare)
    return labelled_job(*common, run, multi_label=several, outputs=outputs)


def label_probabilities(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return the probability of each label by itself (B, labels)."""
    return model(**inputs).logits.float().sigmoid()  # in half precision many of them would be the same


TASK = Task("audio-classification", audio_classification, LABELLED, {"unit": "recordings"})

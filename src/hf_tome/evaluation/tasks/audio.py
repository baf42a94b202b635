"""The task `audio-classification`: a classifier on labelled recordings, with one label each or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, PreTrainedModel

from ...hub.sources import public_name
from ...media.audio import read_audio
from ..data import media_files as media
from ..data.columns import has_several_labels
from ..data.samples import Sample
from ..job import Inputs, Job
from ..loading import load_model
from ..metrics.classes import ClassificationScorer
from ..options import JobOptions
from ..store.fingerprint import processor_settings
from .image_classification import class_scores

TASK = "audio-classification"


def audio_classification(options: JobOptions) -> Job:
    """Load a classifier and the recordings to evaluate it on.

    Where the recordings have several labels, or the model is one for several, samples are scored by mean average
    precision too, and top-1 is right if any of the labels is ranked first.

    Raises:
        ValueError: there are no such recordings, or they have labels that the model does not have.
        OSError: there is no such model.
    """
    opened, columns = media.open_media(options, "Audio")
    model = load_model(AutoModelForAudioClassification, options, "classify recordings")
    extractor = AutoFeatureExtractor.from_pretrained(options.model, trust_remote_code=False)

    def decode(stored: Any) -> np.ndarray:
        return read_audio(media.stored_source(stored), extractor.sampling_rate, options.media_limits)

    names, to_model = media.match_names(opened, columns[1], model.config.id2label, options)
    recordings = media.match_rows(opened, columns, names, to_model, options, decode)
    multi_label = has_several_labels(opened.rows, columns[1])
    scores = label_probabilities if multi_label else class_scores
    return Job(
        TASK,
        public_name(options.model),
        model,
        recordings,
        _prepare(extractor),
        scores,
        ClassificationScorer(multi_label),
        depends_on={"processor": processor_settings(extractor)},
    )


def _prepare(extractor: Any) -> Any:
    def prepare(samples: Sequence[Sample]) -> Inputs:
        sounds = [sample.content for sample in samples]
        return dict(extractor(sounds, sampling_rate=extractor.sampling_rate, return_tensors="pt"))

    return prepare


def label_probabilities(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return the probability of each label by itself (B, labels)."""
    return model(**inputs).logits.float().sigmoid()  # in half precision many of them would be the same

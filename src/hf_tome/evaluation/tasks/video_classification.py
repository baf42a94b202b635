"""The task `video-classification`: a classifier on labelled clips, such as Kinetics, scores averaged over views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForVideoClassification, PreTrainedModel

from ...hub.sources import public_name
from ...media.video import frame_count, read_views, spatial_crops
from ..data import media_files as media
from ..data.samples import Sample
from ..job import Inputs, Job
from ..loading import load_model
from ..metrics.classes import ClassificationScorer
from ..options import JobOptions
from ..store.fingerprint import processor_settings

TASK = "video-classification"
CHUNK = 8
"""Clips whose inputs are held in memory at once, or a batch if that is more; one of 16 frames, resized and in float32,
takes 10 MB a view."""


def video_classification(options: JobOptions) -> Job:
    """Load a classifier and the clips to evaluate it on, `clips` x `crops` views of each.

    Each of the `clips` views in time takes frames spread uniformly over the whole clip, at offsets of its own; each of
    the `crops` views in space is a square along the longer side. A clip with fewer frames than the model takes repeats
    its last one.

    Raises:
        ValueError: there are no such clips, or they have labels that the model does not have.
        OSError: there is no such model.
    """
    opened, columns = media.open_media(options, "Video")
    model = load_model(AutoModelForVideoClassification, options, "classify clips")
    processor = AutoImageProcessor.from_pretrained(options.model, trust_remote_code=False)
    count = frame_count(model.config)

    def decode(stored: Any) -> list[np.ndarray]:
        views = read_views(media.stored_source(stored), count, options.clips, limits=options.media_limits)
        return [crop for view in views for crop in spatial_crops(view, options.crops)]

    names, to_model = media.match_names(opened, columns[1], model.config.id2label, options)
    clips = media.match_rows(opened, columns, names, to_model, options, decode)
    settings = {"frames": count, "clips": options.clips, "crops": options.crops}
    return Job(
        TASK,
        public_name(options.model),
        model,
        clips,
        _prepare(processor),
        view_scores,
        ClassificationScorer(),
        chunk=CHUNK,
        settings=settings,
        depends_on={"processor": processor_settings(processor)},
    )


def _prepare(processor: Any) -> Any:
    def prepare(samples: Sequence[Sample]) -> Inputs:
        views = [
            torch.cat([processor(list(view), return_tensors="pt")["pixel_values"] for view in sample.content])
            for sample in samples
        ]
        return {"pixel_values": torch.stack(views)}  # (B, V, T, C, H, W)

    return prepare


def view_scores(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return the probabilities (B, classes) of clips (B, V, T, C, H, W), averaged over their views."""
    pixels = inputs["pixel_values"]
    logits = model(pixel_values=pixels.flatten(0, 1)).logits.float()
    return logits.softmax(dim=-1).unflatten(0, pixels.shape[:2]).mean(dim=1)

"""The task `video-classification`: a classifier on labelled clips, such as Kinetics, scores averaged over views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForVideoClassification, PreTrainedModel

from ....media.video import frame_count, read_views, spatial_crops
from ...data import media_files as media
from ...data.samples import Sample
from ...job import Inputs, Job
from ...loading import load_processor, load_task_model
from ...options import JobOptions
from ..task import LABELLED, Task
from .labelled import labelled_job, match_labels


def video_classification(options: JobOptions) -> Job:
    """Load a classifier and the clips to evaluate it on, `clips` x `crops` views of each.

    Views in time take frames spread over the whole clip, each at an offset of its own; views in space are squares
    along the longer side. A clip with fewer frames than the model takes repeats its last one.
    """
    opened, columns = media.open_media(options, "Video")
    model = load_task_model(AutoModelForVideoClassification, options, "classify clips")
    processor = load_processor(AutoImageProcessor, options)
    count = frame_count(model.config)

    def decode(stored: Any) -> list[np.ndarray]:
        views = read_views(media.stored_source(stored), count, options.clips, limits=options.media_limits)
        return [crop for view in views for crop in spatial_crops(view, options.crops)]

    def prepare(samples: Sequence[Sample]) -> Inputs:
        views = [[processor(list(view), return_tensors="pt")["pixel_values"] for view in s.content] for s in samples]
        return {"pixel_values": torch.stack([torch.cat(clip) for clip in views])}  # (B, V, T, C, H, W)

    samples = match_labels(opened, columns, model, options, decode)
    settings = {"frames": count, "clips": options.clips, "crops": options.crops}
    return labelled_job(
        TASK.name, options, model, processor, samples, prepare, view_scores, settings=settings, outputs="probabilities"
    )


def view_scores(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return the probabilities (B, classes) of clips (B, V, T, C, H, W), averaged over their views."""
    pixels = inputs["pixel_values"]
    logits = model(pixel_values=pixels.flatten(0, 1)).logits.float()  # (B * V, classes)
    return logits.softmax(dim=-1).unflatten(0, pixels.shape[:2]).mean(dim=1)


TASK = Task("video-classification", video_classification, LABELLED | {"clips", "crops"}, {"unit": "clips"})

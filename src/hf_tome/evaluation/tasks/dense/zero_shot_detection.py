"""The task `zero-shot-object-detection`: boxes of what is named in a sentence each, scored as `object-detection`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from ....hub.sources import public_name
from ...data.boxes import boxes_of, open_boxes
from ...data.samples import Sample
from ...job import Inputs, Job
from ...loading import load_processor, load_task_model
from ...metrics.detection import DetectionScorer
from ...options import JobOptions
from ...store.fingerprint import processor_settings
from ..classification.zero_shot_classes import TEMPLATES, find_classes, read_templates
from ..task import Task
from .detection import NOTES, OUTPUTS, query_logits
from .outputs import DenseRun


def zero_shot_detection(options: JobOptions) -> Job:
    """Load a detector of what is named (OWL-ViT, OWLv2), and images with boxes; raises as `object_detection` does."""
    annotations = open_boxes(options)
    classes = find_classes(annotations.names, options.class_names, None)
    template = (read_templates(options.templates) if options.templates else TEMPLATES)[0]
    model = load_task_model(AutoModelForZeroShotObjectDetection, options, "find what is named")
    processor: Any = load_processor(AutoProcessor, options)
    sentences = [template.replace("{}", name) for name in classes.names]

    def prepare(samples: Sequence[Sample]) -> Inputs:
        texts = [sentences] * len(samples)
        images = [sample.content for sample in samples]
        return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))

    return Job(
        TASK.name,
        public_name(options.model),
        model,
        boxes_of(options, annotations, classes.index),
        prepare,
        DenseRun(OUTPUTS, query_logits),
        DetectionScorer(processor.image_processor),
        depends_on={"processor": processor_settings(processor), "sentences": sentences},
        outputs="independent",
    )


TASK = Task("zero-shot-object-detection", zero_shot_detection, frozenset({"class_names", "templates"}), notes=NOTES)

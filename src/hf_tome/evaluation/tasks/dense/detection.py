"""The tasks `object-detection` and `zero-shot-object-detection`: COCO's mean average precision of boxes.

See `data.boxes` for the data. A detector's classes are matched with the data's by name; a zero-shot detector is asked
for the data's names in a sentence each.
"""

from __future__ import annotations

from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from ....hub.sources import public_name
from ...data.boxes import boxes_of, open_boxes
from ...data.labels import match_labels, read_class_names
from ...job import Job
from ...loading import load_task_model
from ...metrics.detection import DetectionScorer
from ...metrics.maps import Outputs
from ...options import JobOptions
from ...store.fingerprint import processor_settings
from ..classification.labelled import prepare_images
from ..task import LABELLED, Task
from .outputs import DenseRun, load_post_processor

OUTPUTS = ("logits", "pred_boxes")


def object_detection(options: JobOptions) -> Job:
    """Load a detector, and images with boxes.

    Raises:
        ValueError: there are no boxes, the model lacks one of their classes, or the processor makes no boxes.
        OSError: there is no such model.
    """
    annotations = open_boxes(options)
    model = load_task_model(AutoModelForObjectDetection, options, "find objects")
    processor = load_post_processor(AutoImageProcessor, options, "post_process_object_detection")
    described = None if options.labels is None else read_class_names(options.labels)
    return Job(
        TASK.name,
        public_name(options.model),
        model,
        boxes_of(options, annotations, match_labels(annotations.names, model.config.id2label or {}, described)),
        prepare_images(processor),
        DenseRun(OUTPUTS, query_logits),
        DetectionScorer(processor),
        depends_on={"processor": processor_settings(processor)},
        outputs="independent",
    )


def query_logits(outputs: Outputs) -> Tensor:
    """Return the logits (B, queries, classes)."""
    return outputs["logits"]


NOTES = {"agreement": "agrees: share of the unmerged model's boxes that are there, at IoU 0.5, weighted by score."}
TASK = Task("object-detection", object_detection, LABELLED, notes=NOTES)

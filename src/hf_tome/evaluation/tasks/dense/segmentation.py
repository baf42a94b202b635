"""The task `semantic-segmentation`: the class of each pixel, scored by mean intersection over union; see `data.maps`.

A mask has the model's index of the class at each pixel, or its own where a labels file (`classes.csv` or
`classnames.txt` beside the data, or `--labels`) names them; 255 is left out.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoImageProcessor

from ....hub.sources import public_name
from ...data.maps import MapKind, open_maps
from ...job import Job
from ...metrics.maps import Outputs, SegmentationScorer
from ...options import JobOptions
from ...store.fingerprint import processor_settings
from ..task import LABELLED, Task
from .masks import mask_reader, segmentation_class
from .outputs import DenseRun, load_post_processor, prepare_images

MASKS = MapKind("mask", ("masks", "mask", "annotations", "annotation", "labels", "label", "segmentation_map"))
OUTPUTS = ("logits", "class_queries_logits", "masks_queries_logits", "patch_offsets")


def semantic_segmentation(options: JobOptions) -> Job:
    """Load a segmentation model, and images with masks.

    Raises:
        ValueError: there are no masks, their classes are not the model's, or the processor makes no maps of classes.
        OSError: there is no such model.
    """
    model: Any = segmentation_class(options)
    processor = load_post_processor(AutoImageProcessor, options, "post_process_semantic_segmentation")
    read = mask_reader(options, model.config.id2label, bool(getattr(processor, "do_reduce_labels", False)))
    return Job(
        TASK.name,
        public_name(options.model),
        model,
        open_maps(options, MASKS, read),
        prepare_images(processor),
        DenseRun(OUTPUTS, class_logits),
        SegmentationScorer(processor),
        depends_on={"processor": processor_settings(processor), "classes": model.config.id2label},
    )


def class_logits(outputs: Outputs) -> Any:
    """Return the logits of classes in the last dimension, of pixels (B, H, W, C) or of queries (B, Q, C)."""
    return outputs["logits"].movedim(1, -1) if "logits" in outputs else outputs["class_queries_logits"]


NOTES = {"agreement": "agrees: share of the pixels, at 64 x 64 places of each image, of the unmerged model's class."}
TASK = Task("semantic-segmentation", semantic_segmentation, LABELLED, notes=NOTES)

"""The task `depth-estimation`: absolute relative error and delta1 of depths; see `data.maps`.

A map of floats is in metres; one of integers in millimetres, or in `--depth-scale` steps a metre. 0 is unknown.
"""

from __future__ import annotations

import numpy as np
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from ....hub.sources import public_name
from ...data.maps import MapKind, open_maps
from ...data.samples import SkipSample
from ...job import Job
from ...loading import load_task_model
from ...metrics.maps import DepthScorer
from ...options import JobOptions
from ...store.fingerprint import processor_settings
from ..task import Task
from .outputs import DenseRun, centred, load_post_processor, prepare_images

DEPTHS = MapKind("depth map", ("depths", "depth", "depth_map", "depth_maps"))
MILLIMETRES = 1000.0


def depth_estimation(options: JobOptions) -> Job:
    """Load a model of depth, and images with depths; raises as `semantic_segmentation` does."""
    model = load_task_model(AutoModelForDepthEstimation, options, "estimate depth")
    processor = load_post_processor(AutoImageProcessor, options, "post_process_depth_estimation")
    kind = getattr(model.config, "depth_estimation_type", "relative" if model.config.model_type == "dpt" else "metric")
    steps = MILLIMETRES if options.depth_scale is None else options.depth_scale

    def metres(values: np.ndarray) -> np.ndarray:
        depth = values / steps if values.dtype.kind in "iu" else values
        if not (np.isfinite(depth) & (depth > 0)).any():
            raise SkipSample("its depth map has no depth above 0")
        return depth

    return Job(
        TASK.name,
        public_name(options.model),
        model,
        open_maps(options, DEPTHS, metres),
        prepare_images(processor),
        DenseRun(("predicted_depth", "field_of_view"), centred),
        DepthScorer(processor, kind == "relative"),
        settings={"depth": "inverse, scale and shift fitted to each image" if kind == "relative" else "metric"},
        depends_on={"processor": processor_settings(processor), "depth scale": steps},
        outputs="embeddings",
    )


NOTES = {"agreement": "agrees: 100 times the mean correlation with the unmerged model's map, at 64 x 64 places."}
TASK = Task("depth-estimation", depth_estimation, frozenset({"depth_scale"}), notes=NOTES)

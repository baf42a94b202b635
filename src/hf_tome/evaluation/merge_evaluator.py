"""An `evaluate` evaluator that works with transformers 5, with merged models and without a network."""

from __future__ import annotations

from typing import Any

import evaluate
import transformers
from evaluate.evaluator import ImageClassificationEvaluator

from .. import pipelines
from ..config import MergeConfig
from .metrics.classification import Accuracy


class MergeEvaluator(ImageClassificationEvaluator):
    """`evaluate.evaluator("image-classification")` for a merged model; see its `compute` for the arguments.

    The accuracy is in percent, with a bootstrap interval if `strategy="bootstrap"`. Its timing includes preprocessing
    and warm-up; `hf-tome bench` measures speed.

    Args:
        merge_config (`MergeConfig`, *optional*): for a model given as an id, a folder or an object; a pipeline stays
            as it is.
    """

    def __init__(self, task: str = "image-classification", merge_config: MergeConfig | None = None):
        super().__init__(task, default_metric_name=None)
        self.merge_config = merge_config

    def prepare_pipeline(
        self,
        model_or_pipeline: Any,
        tokenizer: Any = None,
        feature_extractor: Any = None,
        device: int | None = None,
    ) -> Any:
        """Return the pipeline, or one around the model; `evaluate`'s own names classes that transformers 5 lacks."""
        if isinstance(model_or_pipeline, transformers.Pipeline):
            return model_or_pipeline
        options = {"image_processor": feature_extractor, "device": device}
        given = {name: value for name, value in options.items() if value is not None}
        return pipelines.pipeline(self.task, model_or_pipeline, merge_config=self.merge_config, **given)

    def prepare_metric(self, metric: Any = None) -> evaluate.EvaluationModule:
        """Return the metric, `Accuracy` where none is given."""
        return Accuracy() if metric is None else super().prepare_metric(metric)

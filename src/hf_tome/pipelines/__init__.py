"""`pipeline`: transformers' pipelines with merging applied; those that read media do so robustly and within limits."""

from .build import PIPELINE_CLASSES, pipeline
from .clips import UniformVideoPipeline

__all__ = ["PIPELINE_CLASSES", "UniformVideoPipeline", "pipeline"]

"""Accuracy and speed of a model under several merge configs, on real data; here are the names that a task needs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.samples import Sample, SkipSample
    from .job import Job
    from .metrics.classes import ClassificationScorer
    from .metrics.texts import GeneratedText, TextScorer
    from .options import JobOptions
    from .running.runner import evaluate
    from .store.record import Record, Scorer
    from .tasks import build_job, register_task

__all__ = [
    "ClassificationScorer",
    "GeneratedText",
    "Job",
    "JobOptions",
    "Record",
    "Sample",
    "Scorer",
    "SkipSample",
    "TextScorer",
    "build_job",
    "evaluate",
    "register_task",
]

_DEFINED_IN = {
    "ClassificationScorer": "metrics.classes",
    "GeneratedText": "metrics.texts",
    "Job": "job",
    "JobOptions": "options",
    "Record": "store.record",
    "Sample": "data.samples",
    "Scorer": "store.record",
    "SkipSample": "data.samples",
    "TextScorer": "metrics.texts",
    "build_job": "tasks",
    "evaluate": "running.runner",
    "register_task": "tasks",
}
"""Imported when first used: metrics and tasks bring `datasets` and `evaluate` along."""


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_DEFINED_IN[name]}", __name__), name)

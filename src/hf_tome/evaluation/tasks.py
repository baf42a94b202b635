"""The tasks that can be evaluated: one row and one file each."""

from __future__ import annotations

from collections.abc import Callable

from .imagenet import image_classification
from .task import Job, JobOptions

TASKS: dict[str, Callable[[JobOptions], Job]] = {
    "image-classification": image_classification,
}


def build_job(task: str, options: JobOptions) -> Job:
    """Build the job of a task.

    Raises:
        ValueError: an unknown task, or what the task's own function raises.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; known are {', '.join(TASKS)}.")
    return TASKS[task](options)

"""The tasks that can be evaluated: one row and one file each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from ..job import Job
from ..options import JobOptions, OptionError
from .audio import audio_classification
from .captioning import image_to_text
from .image_classification import image_classification
from .video_classification import video_classification
from .vqa import visual_question_answering
from .zero_shot import zero_shot_classification

TASKS: dict[str, Callable[[JobOptions], Job]] = {
    "image-classification": image_classification,
    "video-classification": video_classification,
    "zero-shot-image-classification": zero_shot_classification,
    "audio-classification": audio_classification,
    "image-to-text": image_to_text,
    "visual-question-answering": visual_question_answering,
}


LABELLED = frozenset({"labels"})
GENERATING = frozenset({"prompt", "max_new_tokens"})
OPTIONS: dict[str, frozenset[str]] = {
    "image-classification": LABELLED,
    "video-classification": LABELLED | {"clips", "crops"},
    "zero-shot-image-classification": LABELLED | {"class_names", "templates"},
    "audio-classification": LABELLED,
    "image-to-text": GENERATING,
    "visual-question-answering": GENERATING,
}
"""The options that a task takes, of those that not all take."""


def build_job(task: str, options: JobOptions) -> Job:
    """Build the job of a task.

    Raises:
        ValueError: an unknown task, an option that it does not take, or what the task's own function raises.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; known are {', '.join(TASKS)}.")
    _check_options(task, options)
    job = TASKS[task](options)
    job.options = options
    return job


def _check_options(task: str, options: JobOptions) -> None:
    """Refuse an option that is set, if only other tasks take it; tasks that are not in the table take all."""
    takers = {name: [one for one in OPTIONS if name in OPTIONS[one]] for one in OPTIONS.values() for name in one}
    for field in fields(options):
        tasks = takers.get(field.name, [task])
        if task in OPTIONS and task not in tasks and getattr(options, field.name) != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            raise OptionError(f"{flag} means nothing to the task {task}; it is for {', '.join(tasks)}. Leave it out.")

"""The tasks that can be evaluated: one row and one file each."""

from __future__ import annotations

from collections.abc import Callable

from .audio import audio_classification
from .captioning import image_to_text
from .imagenet import image_classification
from .job import Job, JobOptions
from .kinetics import video_classification
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


def build_job(task: str, options: JobOptions) -> Job:
    """Build the job of a task.

    Raises:
        ValueError: an unknown task, or what the task's own function raises.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; known are {', '.join(TASKS)}.")
    job = TASKS[task](options)
    job.options = options
    return job

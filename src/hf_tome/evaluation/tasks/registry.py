"""The tasks that can be evaluated: one row and one file each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import fields

from ..job import Job
from ..options import JobOptions, OptionError
from . import text_cache
from .classification import audio, image_classification, video_classification, zero_shot
from .dense import depth, detection, segmentation, zero_shot_detection
from .generation import captioning, speech, vqa
from .task import Task

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        *(image_classification, video_classification, zero_shot, audio, captioning, vqa, text_cache),
        *(segmentation, depth, detection, zero_shot_detection, speech),
    )
}

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SOURCES = ("model", "data", "split", "limit", "seed", "streaming", "loaded", "processor", "rows")
COMMON_OPTIONS = frozenset((*SOURCES, "device", "dtype", "media_limits"))
"""The options that every task takes."""


def register_task(
    name: str, build: Callable[[JobOptions], Job], *, options: Iterable[str] = (), unit: str = "samples"
) -> None:
    """Add an evaluation task, which `--task` and `build_job` then know by its name.

    Args:
        name (`str`): lower case, words joined by hyphens.
        build: takes `JobOptions`, loads the model and the data, and returns a `Job` whose `task` is `name`.
        options: the fields of `JobOptions` that the task takes besides those that all take, such as `"labels"`.
        unit (`str`): what tables call the samples.

    Raises:
        ValueError: the name is taken or malformed, or an option is none of `JobOptions`.
        TypeError: `build` cannot be called.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"The task's name is {name!r}; it takes lower-case words joined by hyphens, as in 'my-task'.")
    if name in TASKS:
        raise ValueError(f"There is a task {name!r} already; choose another name. Known are {', '.join(TASKS)}.")
    if not callable(build):
        raise TypeError(f"`build` is {build!r}; it takes a function of JobOptions that returns a Job.")
    special = _special_options()
    chosen = frozenset([options] if isinstance(options, str) else options)
    if unknown := sorted(chosen - special):
        raise ValueError(f"{unknown[0]!r} is no option of single tasks; those are {', '.join(sorted(special))}.")
    TASKS[name] = Task(name, build, chosen, {"unit": unit})


def build_job(task: str, options: JobOptions) -> Job:
    """Build the job of a task.

    Raises:
        ValueError: an unknown task, an option that it does not take, or what the task's own function raises.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; known are {', '.join(TASKS)}.")
    _check_options(TASKS[task], options)
    job = TASKS[task].build(options)
    if not isinstance(job, Job):
        raise TypeError(f"The task {task!r} returned {type(job).__name__}; its function must return a Job.")
    job.options = options
    return job


def _special_options() -> frozenset[str]:
    """Return the options that not all tasks take."""
    return frozenset(option.name for option in fields(JobOptions)) - COMMON_OPTIONS


def _check_options(task: Task, options: JobOptions) -> None:
    """Raise `OptionError` where an option is set that only other tasks take."""
    for option in fields(options):
        if option.name in COMMON_OPTIONS | task.options or getattr(options, option.name) == option.default:
            continue
        flag = f"--{option.name.replace('_', '-')}"
        takers = ", ".join(row.name for row in TASKS.values() if option.name in row.options)
        raise OptionError(f"{flag} does not apply to the task {task.name}; it is for {takers}. Leave it out.")

"""One row of the table of tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..job import Job
from ..options import JobOptions

LABELLED = frozenset({"labels"})
"""The options of tasks whose samples have labels."""
GENERATING = frozenset({"prompt", "max_new_tokens"})
"""The options of tasks in which text is generated."""
GENERATED_WORDS = {"tokens": "image\ntokens", "same": "of which is said, to the letter, the same as by"}


@dataclass(frozen=True)
class Task:
    """An evaluation task.

    Attributes:
        name: what `--task` takes.
        build: loads the model and the data and returns the job.
        options: the fields of `JobOptions` that the task takes, of those that not all tasks take.
        words: what tables call things, where it differs from `reporting.tables.WORDS`: `unit` (the samples),
            `tokens` (the header of the token counts) and `same` (how the agreement is put).
        notes: what columns mean, where it differs from `reporting.tables.COLUMN_NOTES`, by the column's key.
    """

    name: str
    build: Callable[[JobOptions], Job]
    options: frozenset[str] = frozenset()
    words: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

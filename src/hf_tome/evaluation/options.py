"""The options of an evaluation: model, data, and what single tasks take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..media.limits import DEFAULT_LIMITS, MediaLimits


class OptionError(ValueError):
    """An option that does not apply to the task or the data; wrong usage on the command line."""

    exit_code = 2


@dataclass(frozen=True)
class JobOptions:
    """What to evaluate on what data; `tasks.build_job` raises for options that the task does not take.

    Attributes:
        labels: a labels file (see `labels.read_class_names`).
        class_names, templates: files of names and prompts for zero-shot classification.
        clips, crops: views of a clip, in time and in space.
        prompt, max_new_tokens: what a model that generates text is asked, and how much it may say; `None` is the
            task's own.
        context_tokens: what a model reads of a text before it continues; `None` is the task's own.
        depth_scale: steps a metre of depth maps of integers; `None` for millimetres.
        media_limits: sizes and times beyond which an image, clip or recording is skipped.
        loaded: a model in memory; `model` is then what it is called.
        processor: the processor of `loaded`; `None` for the one saved in `model`.
        rows: a `datasets.Dataset` in memory; `data` is then what it is called.
    """

    model: str
    data: str
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    streaming: bool = False
    labels: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    class_names: Path | None = None
    templates: Path | None = None
    clips: int = 1
    crops: int = 1
    prompt: str | None = None
    max_new_tokens: int | None = None
    context_tokens: int | None = None
    depth_scale: float | None = None
    media_limits: MediaLimits = DEFAULT_LIMITS
    loaded: Any = None
    processor: Any = None
    rows: Any = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"The seed (--seed) is {self.seed}; it takes an integer of at least 0.")

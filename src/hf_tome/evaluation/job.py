"""What is evaluated: a model, its data, and how the two meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from transformers import PreTrainedModel

from .data.samples import Listed, Sample, Skipped

if TYPE_CHECKING:
    from .store.run_store import Record

Inputs = dict[str, Any]
"""Keyword arguments of the model, tensors with one row a sample."""

CHUNK = 256
"""Samples whose inputs are held in memory at once, or a batch if that is more: each is preprocessed once, and then
goes through every config."""


class OptionError(ValueError):
    """An option that the task or the data have no use for; wrong usage, as the command line counts it."""

    exit_code = 2


@dataclass(frozen=True)
class JobOptions:
    """What to evaluate on what; `tasks.build_job` refuses what the task has no use for.

    Attributes:
        labels: a labels file (see `labels.read_class_names`).
        class_names, templates: files of names and prompts for zero-shot classification.
        clips, crops: views of a clip, in time and in space.
        prompt, max_new_tokens: what a model that generates text is asked, and how much it may say; `None` is the
            task's own.
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

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"The seed (--seed) is {self.seed}; it takes an integer of at least 0.")


class Data(Protocol):
    """Samples of one split; `read` yields those that cannot be read too."""

    name: str
    split: str

    def __iter__(self) -> Iterator[Sample]:
        """Read the samples one by one."""

    def __len__(self) -> int:
        """Return the number of samples, skipped ones included; 0 where it is unknown."""

    def listed(self) -> Sequence[Listed] | None:
        """Return what is known of every sample without reading its content; `None` where only reading tells."""

    def read(self, wanted: Callable[[int], bool] = ...) -> Iterator[Sample | Skipped]:
        """Read those at the wanted positions."""


class Outcome(Protocol):
    """How what a model returns for a batch becomes records, and those of all samples a row of the results."""

    def join(self, parts: Sequence[Any]) -> Any:
        """Put together what the parts of a batch gave, on the CPU."""

    def records(self, samples: Sequence[Sample], output: Any) -> list[Record]:
        """Return what is kept of each sample, as plain JSON; `tokens` in it replaces the count of the tower.

        What is right for the sample stands under `label` or `right`, by which a run that goes on knows its samples.
        """

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return the quality of one variant, by column, beside the unmerged model on the same samples."""


@dataclass
class Job:
    """A model, its data and how the two meet; a task is a function that builds one.

    Attributes:
        prepare: samples to model inputs, one row a sample, on the CPU.
        run: the model on inputs on its device, to whatever `outcome` reads; this is what is timed.
        outcome: what is made of that, for classifiers `Classes`.
        chunk: samples whose inputs are held in memory at once, or a batch if that is more.
        settings: what else the results depend on, as plain values.
        depends_on: the same of what is too long to be shown, such as the names of classes; see `identity`.
        options: what the job was built from; `None` for one made in memory.
    """

    task: str
    model_name: str
    model: PreTrainedModel
    data: Data
    prepare: Callable[[Sequence[Sample]], Inputs]
    run: Callable[[PreTrainedModel, Inputs], Any]
    outcome: Outcome
    chunk: int = CHUNK
    settings: dict[str, Any] = field(default_factory=dict)
    depends_on: dict[str, Any] = field(default_factory=dict)
    options: JobOptions | None = None

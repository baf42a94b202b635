"""An evaluation job: model, data set, preprocessing, inference function, scorer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedModel

from .data.left_out import LeftOut
from .data.samples import Sample, SampleInfo, Skipped
from .options import JobOptions
from .store.record import Scorer

Inputs = dict[str, Any]
"""Keyword arguments of the model, tensors with one row a sample."""


class Data(Protocol):
    """Samples of one split; `read` yields those that cannot be read too."""

    name: str
    split: str
    left_out: LeftOut
    """Files in the folder of the data that are no samples."""

    def __iter__(self) -> Iterator[Sample]:
        """Read the samples one by one."""

    def __len__(self) -> int:
        """Return the number of samples, skipped ones included; 0 where it is unknown."""

    def listed(self) -> Sequence[SampleInfo] | None:
        """Return what is known of every sample without reading its content; `None` where only reading tells."""

    def read(self, wanted: Callable[[int], bool] = ...) -> Iterator[Sample | Skipped]:
        """Read those at the wanted positions."""


@dataclass
class Job:
    """An evaluation job: model, data set, preprocessing, inference function, scorer; a task builds one.

    Attributes:
        prepare: samples to model inputs, one row a sample, on the CPU.
        run: the model on inputs on its device, to whatever `scorer` reads; this is what is timed.
        scorer: turns its outputs into records and metrics, for classifiers a `ClassificationScorer`.
        settings: what else the results depend on, as plain values.
        depends_on: the same for values too long to show, such as the names of classes; see `describe.identify`.
        outputs: what `run` gives, a key of `search.objective.DISTRIBUTIONS`: `"logits"`, `"probabilities"` of classes,
            `"scores"`, a sigmoid of each candidate, `"independent"` classes, or `"embeddings"`.
        place: where tokens merge, as `MergeConfig.where` has it, unless a config says otherwise.
        options: what the job was built from; `None` for one made in memory.
    """

    task: str
    model_name: str
    model: PreTrainedModel
    data: Data
    prepare: Callable[[Sequence[Sample]], Inputs]
    run: Callable[[PreTrainedModel, Inputs], Any]
    scorer: Scorer
    settings: dict[str, Any] = field(default_factory=dict)
    depends_on: dict[str, Any] = field(default_factory=dict)
    outputs: str = "logits"
    place: str = "auto"
    options: JobOptions | None = None

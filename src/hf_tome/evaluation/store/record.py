"""A record is the result of one sample with one variant; a scorer writes and reads records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..data.samples import Sample
from .record_checks import Check

Record = dict[str, Any]
"""Plain JSON values: `variant`, `sample` (the position), `name`, `tokens`, `gflops`, `seconds`, and what the scorer
keeps. Lines of the file that are about a session, a skipped sample or a peak of memory are records too."""


class Scorer(Protocol):
    """Turn the outputs of a batch into records, and the records of all samples into metrics."""

    def join(self, parts: Sequence[Any]) -> Any:
        """Put together what the parts of a batch gave, on the CPU."""

    def records(self, samples: Sequence[Sample], output: Any) -> list[Record]:
        """Return what is kept of each sample, as plain JSON; `tokens` in it replaces the count of the tower.

        The sample's reference stands under `label` or `right`, so that a resumed run can check it.
        """

    def fields(self) -> Mapping[str, Check]:
        """Return the check of each field of a record that `metrics` reads, for runs that resume."""

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return the quality of one variant, by column, beside the unmerged model on the same samples."""

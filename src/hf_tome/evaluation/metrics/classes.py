"""Class scores as records, and records as accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..data.samples import Sample
from ..store.record import Record
from ..store.record_checks import Check, is_index, is_number, list_of
from .bootstrap import LastResult, describe_drop, mean_precisions, paired_drop
from .classification import TOP_K, Agreement, MeanAveragePrecision, PairedDrop, TopKAccuracy, compute


@dataclass(frozen=True)
class ClassificationScorer:
    """The outcome of a classifier, whose output is a tensor of scores (B, classes).

    Attributes:
        multi_label: whether a sample can have several right classes, which are then scored by mean average precision.
    """

    multi_label: bool = False
    _unmerged_precisions: LastResult[np.ndarray] = field(
        default_factory=lambda: LastResult(_precisions), init=False, repr=False, compare=False
    )

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the scores of the whole batch."""
        return torch.cat(list(parts)).float().cpu()

    def records(self, samples: Sequence[Sample], output: torch.Tensor) -> list[Record]:
        """Keep the right class and those ranked first; of several labels all scores."""
        ranked = output.topk(min(max(TOP_K), output.shape[-1])).indices.tolist()
        return [
            {
                "label": sample.label,
                "ranked": best,
                **({"scores": row.tolist()} if self.multi_label else {}),
            }
            for sample, best, row in zip(samples, ranked, output)
        ]

    def fields(self) -> dict[str, Check]:
        """Return the check of each field that `metrics` reads."""
        if not self.multi_label:
            return {"label": _is_label, "ranked": list_of(is_index)}
        return {"label": list_of(is_index), "ranked": list_of(is_index), "scores": list_of(is_number)}

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return accuracy, agreement and the drop, of several labels with the mean average precision and its drop."""
        inputs: dict[str, Any] = {
            "predictions": [record["ranked"] for record in done],
            "unmerged": [record["ranked"] for record in unmerged],
            "references": [_reference(record) for record in done],
        }
        if not self.multi_label:
            return compute((TopKAccuracy, Agreement, PairedDrop), inputs)
        inputs["scores"] = [record["scores"] for record in done]
        inputs["targets"] = _targets(done)
        values = compute((TopKAccuracy, Agreement, MeanAveragePrecision), inputs)
        if inputs["scores"] == [record["scores"] for record in unmerged]:
            return values | describe_drop(0, np.zeros(1))
        return values | paired_drop(_precisions(done), self._unmerged_precisions(unmerged))

    def by_sample(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, np.ndarray]:
        """Return what each sample (samples,) adds to the accuracy and the agreement, which are their means.

        Of several labels there is the agreement alone, as average precisions are no means over samples.
        """
        best, right = np.array([record["ranked"][0] for record in done]), np.array([_reference(one) for one in done])
        same = 100.0 * (best == np.array([record["ranked"][0] for record in unmerged]))
        if self.multi_label:
            return {"agreement": same}
        in_five = [label in record["ranked"] for record, label in zip(done, right)]
        return {"top1": 100.0 * (best == right), "top5": 100.0 * np.array(in_five), "agreement": same}


def _targets(records: Sequence[Record]) -> list[list[int]]:
    """Return 0 or 1 (samples, classes): whether a class is right."""
    return [[int(index in record["label"]) for index in range(len(record["scores"]))] for record in records]


def _precisions(records: Sequence[Record]) -> np.ndarray:
    return mean_precisions(np.array([record["scores"] for record in records]), np.array(_targets(records)))


def _is_label(value: Any) -> bool:
    return is_index(value) or list_of(is_index)(value)


def _reference(record: Record) -> int:
    """Return the right class; of several the one that the model ranks best, so that any of them counts."""
    label = record["label"]
    if isinstance(label, int):
        return label
    return next((index for index in record["ranked"] if index in label), -1)

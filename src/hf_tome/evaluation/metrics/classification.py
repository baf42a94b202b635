"""Accuracy, agreement and what merging costs as metrics of the `evaluate` library, without a network; in percent.

They name their inputs alike, so that `evaluate.combine` runs any of them together: `predictions` are each sample's
classes by rank, best first, `references` the right classes, `unmerged` what the unmerged model predicts, `scores` one
number a class, and `targets` one 0 or 1 a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .bootstrap import RESAMPLES, hit_drop

TOP_K = (1, 5)

_CLASS = datasets.Value("int64")
_RANKED = datasets.Sequence(_CLASS)


class Accuracy(evaluate.Metric):
    """How often the predicted class is the right one: `{"top1": ...}`; `predictions` are single classes here."""

    def _info(self) -> evaluate.MetricInfo:
        return info(self, {"predictions": _CLASS, "references": _CLASS})

    def _compute(self, predictions: Any, references: Any, **_: Any) -> dict[str, float]:
        return {"top1": percent(np.asarray(predictions) == np.asarray(references))}


class TopKAccuracy(evaluate.Metric):
    """How often the right class is among the k ranked first: `{"top1": ..., "top5": ...}`.

    `predictions` hold at least `max(TOP_K)` classes, or all that the model has.
    """

    def _info(self) -> evaluate.MetricInfo:
        return info(self, {"predictions": _RANKED, "references": _CLASS})

    def _compute(self, predictions: Any, references: Any, **_: Any) -> dict[str, float]:
        hits = np.asarray(predictions) == np.asarray(references)[:, None]
        return {f"top{k}": percent(hits[:, :k].any(axis=1)) for k in TOP_K}


class Agreement(evaluate.Metric):
    """How often the merged and the unmerged model rank the same class first: `{"agreement": ...}`."""

    def _info(self) -> evaluate.MetricInfo:
        return info(self, {"predictions": _RANKED, "unmerged": _RANKED})

    def _compute(self, predictions: Any, unmerged: Any, **_: Any) -> dict[str, float]:
        return {"agreement": percent(np.asarray(predictions)[:, 0] == np.asarray(unmerged)[:, 0])}


class PairedDrop(evaluate.Metric):
    """The points of top-1 accuracy that merging costs, and their 95 % interval, from the same samples.

    `{"drop": ..., "drop_low": ..., "drop_high": ...}`; above 0 the merged model is worse. The interval is the
    percentile bootstrap over samples, drawn with `seed`; where no sample changed, Clopper and Pearson's.
    """

    def _info(self) -> evaluate.MetricInfo:
        return info(self, {"predictions": _RANKED, "unmerged": _RANKED, "references": _CLASS})

    def _compute(
        self, predictions: Any, unmerged: Any, references: Any, seed: int = 0, resamples: int = RESAMPLES, **_: Any
    ) -> dict[str, float]:
        right = np.asarray(references)
        merged_hits = np.asarray(predictions)[:, 0] == right
        lost = (np.asarray(unmerged)[:, 0] == right).astype(int) - merged_hits
        # Each sample loses, keeps or gains a hit, so a resample is a draw of three counts, whatever their number.
        counts = np.array([(lost == value).sum() for value in (1, 0, -1)])
        drawn = np.random.default_rng(seed).multinomial(len(lost), counts / len(lost), size=resamples)
        return hit_drop(lost, 100 * (drawn[:, 0] - drawn[:, 2]) / len(lost))


class MeanAveragePrecision(evaluate.Metric):
    """The mean over classes of the average precision, as for AudioSet: `{"map": ...}`.

    `scores` and `targets` hold one value a class for each sample; classes without a positive sample are left out.
    """

    def _info(self) -> evaluate.MetricInfo:
        return info(self, {"scores": datasets.Sequence(datasets.Value("float64")), "targets": _RANKED})

    def _compute(self, scores: Any, targets: Any, **_: Any) -> dict[str, float]:
        from sklearn.metrics import average_precision_score

        scores, targets = np.asarray(scores), np.asarray(targets)
        present = targets.any(axis=0)
        if not present.any():
            raise ValueError("No sample has a target, so there is no average precision.")
        return {"map": 100 * float(average_precision_score(targets[:, present], scores[:, present], average="macro"))}


def compute(metrics: Sequence[type[evaluate.Metric]], inputs: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of several metrics, each given the inputs that it names."""
    values: dict[str, float] = {}
    for metric in (made(keep_in_memory=True) for made in metrics):
        values.update(metric.compute(**{name: inputs[name] for name in metric._feature_names()}))
    return values


def percent(hits: np.ndarray) -> float:
    """Return the share of hits."""
    return 100 * int(hits.sum()) / len(hits)  # in this order 759 of 1000 is 75.9, not 75.89999999999999


def info(metric: evaluate.Metric, features: dict[str, Any]) -> evaluate.MetricInfo:
    """Describe a metric by its docstring and the features of its inputs."""
    description = (type(metric).__doc__ or "").strip()
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=description,
        features=datasets.Features(features),
    )

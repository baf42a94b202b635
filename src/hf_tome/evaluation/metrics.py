"""Accuracy and agreement as metrics of the `evaluate` library, usable without a network; values in percent."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

TOP_K = (1, 5)


class TopKAccuracy(evaluate.Metric):
    """How often the right class is among the k ranked first: `{"top1": ..., "top5": ...}`.

    `predictions` are class indices, best first, at least `max(TOP_K)` of them or all that the model has;
    `references` are the right ones.
    """

    def _info(self) -> evaluate.MetricInfo:
        ranked = datasets.Sequence(datasets.Value("int64"))
        return _info(self, {"predictions": ranked, "references": datasets.Value("int64")})

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        hits = np.asarray(predictions) == np.asarray(references)[:, None]
        return {f"top{k}": _percent(hits[:, :k].any(axis=1)) for k in TOP_K}


class Agreement(evaluate.Metric):
    """How often two models give the same class: `{"agreement": ...}`; both arguments are class indices."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(self, {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"agreement": _percent(np.asarray(predictions) == np.asarray(references))}


def _percent(hits: np.ndarray) -> float:
    return 100 * int(hits.sum()) / len(hits)  # in this order 759 of 1000 is 75.9, not 75.89999999999999


def _info(metric: evaluate.Metric, features: dict[str, Any]) -> evaluate.MetricInfo:
    description = (type(metric).__doc__ or "").strip()
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=description,
        features=datasets.Features(features),
    )

"""Detected boxes as records, and records as mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..data.samples import Sample
from ..store.record import Record
from ..store.record_checks import Check, is_number, list_of
from .bootstrap import FEWEST_RESAMPLES, LastResult, describe_drop, draw_counts, paired_drop
from .boxes import MOST, THRESHOLDS, match_boxes, mean_average_precision, shared_boxes
from .maps import Outputs, PostProcessed

BITS = 1 << np.arange(len(THRESHOLDS))


@dataclass(frozen=True)
class DetectionScorer(PostProcessed):
    """Scores boxes as COCO does, by `post_process_object_detection`."""

    _unmerged_precisions: LastResult[np.ndarray] = field(
        default_factory=lambda: LastResult(_precisions), init=False, repr=False, compare=False
    )

    def records(self, samples: Sequence[Sample], output: Outputs) -> list[Record]:
        """Keep the right boxes, and of each predicted one class, score, corners and at which IoUs it is right."""
        sizes = [sample.content.size[::-1] for sample in samples]
        process = self.processor.post_process_object_detection
        results = process(SimpleNamespace(**output), threshold=0.0, target_sizes=sizes)
        return [self._record(sample, result) for sample, result in zip(samples, results)]

    def _record(self, sample: Sample, result: dict[str, Any]) -> Record:
        scores = result["scores"].double().numpy()
        order = np.argsort(-scores, kind="stable")[:MOST]
        classes, boxes = result["labels"].numpy()[order], result["boxes"].double().numpy()[order]
        scores = scores[order]
        targets = np.array(sample.label, dtype=float).reshape(-1, 6)  # class, corners, crowd
        right, ignored = match_boxes(classes, boxes, targets[:, 0], targets[:, 1:5], targets[:, 5] > 0)
        predicted = [
            [int(name), round(score, 6), *(round(value, 2) for value in box), int(hits @ BITS), int(free @ BITS)]
            for name, score, box, hits, free in zip(classes, scores.tolist(), boxes.tolist(), right, ignored)
        ]
        return {"label": sample.label, "boxes": predicted}

    def fields(self) -> dict[str, Check]:
        """Return the check of each field that `metrics` reads."""
        return {"label": list_of(_is_target), "boxes": list_of(_is_box)}

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return mAP and AP50 in percent, the drop of the former, and the agreement."""
        mean, at_50 = mean_average_precision(class_tables(done), np.ones((len(done), 1)))
        pairs = [(_boxes(merged), _boxes(plain)) for merged, plain in zip(done, unmerged)]
        same = [shared_boxes(a[:, 0], a[:, 2:6], b[:, 0], b[:, 2:6], b[:, 1]) for a, b in pairs]
        drop = describe_drop(0, np.zeros(1))
        if any(merged["boxes"] != plain["boxes"] for merged, plain in zip(done, unmerged)):
            drop = paired_drop(_precisions(done), self._unmerged_precisions(unmerged))
        return {
            "box_map": float(mean[0]),
            "box_ap50": float(at_50[0]),
            "agreement": float(100 * np.mean(same)),
            **drop,
        }


def class_tables(records: Sequence[Record]) -> list[tuple[np.ndarray, ...]]:
    """Return, for each class that has a right box, what `mean_average_precision` takes."""
    images = np.concatenate([np.full(len(record["boxes"]), at) for at, record in enumerate(records)]).astype(int)
    boxes = np.concatenate([_boxes(record) for record in records])
    right, ignored = ((boxes[:, column].astype(int)[:, None] & BITS) > 0 for column in (6, 7))
    counts: dict[int, np.ndarray] = {}
    for at, record in enumerate(records):
        for name, *_, crowd in record["label"]:
            if not crowd:
                counts.setdefault(int(name), np.zeros(len(records)))[at] += 1
    tables: list[tuple[np.ndarray, ...]] = []
    for name, targets in sorted(counts.items()):
        mine = boxes[:, 0] == name
        tables.append((boxes[mine, 1], images[mine], right[mine], ignored[mine], targets))
    return tables


def _precisions(records: Sequence[Record]) -> np.ndarray:
    """Return mAP in percent over all images, then over each resample (1 + resamples,)."""
    tables = class_tables(records)
    counts = chain([np.ones((len(records), 1))], draw_counts(len(records), FEWEST_RESAMPLES))
    return np.concatenate([mean_average_precision(tables, each)[0] for each in counts])


def _boxes(record: Record) -> np.ndarray:
    return np.array(record["boxes"], dtype=float).reshape(-1, 8)


def _is_target(value: Any) -> bool:
    return list_of(is_number)(value) and len(value) == 6


def _is_box(value: Any) -> bool:
    return list_of(is_number)(value) and len(value) == 8

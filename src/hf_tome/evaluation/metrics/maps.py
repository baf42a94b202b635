"""Predicted maps as records, and records as mean intersection over union or errors of depth."""

from __future__ import annotations

import base64
import binascii
import inspect
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, cat

from ..data.samples import Sample
from ..store.record import Record
from ..store.record_checks import Check, is_amount, is_index, list_of
from .bootstrap import mean_drop, ratio_drop

GRID = 64
"""Rows and columns of places at which a predicted map is kept, to be compared with the unmerged model's."""
STEPS = 65_535
WITHIN = 1.25
"""delta1: a depth counts as right where it is off by less than this factor."""

Outputs = dict[str, Tensor]
"""What post-processing reads of a model's output, by name."""


@dataclass(frozen=True)
class PostProcessed:
    """What scorers of dense outputs share.

    Attributes:
        processor: an image processor with the task's method of post-processing.
    """

    processor: Any

    def join(self, parts: Sequence[Outputs]) -> Outputs:
        """Return the outputs of the whole batch, on the CPU."""
        return {name: cat([part[name] for part in parts]).float().cpu() for name in parts[0]}


@dataclass(frozen=True)
class SegmentationScorer(PostProcessed):
    """Scores the class of each pixel, by `post_process_semantic_segmentation`."""

    def records(self, samples: Sequence[Sample], output: Outputs) -> list[Record]:
        """Keep the pixels of each class that are right and that are either predicted or right, and some of the map."""
        return [
            {
                "label": sample.label,
                "counts": count_classes(predicted, sample.content.values),
                "map": pack_grid(predicted),
            }
            for sample, predicted in zip(samples, self.maps(samples, output))
        ]

    def maps(self, samples: Sequence[Sample], output: Outputs) -> list[np.ndarray]:
        """Return the class of each pixel of each sample, (H, W) as its right map."""
        sizes = [sample.content.values.shape for sample in samples]
        maps = self.processor.post_process_semantic_segmentation(SimpleNamespace(**output), target_sizes=sizes)
        return [predicted.numpy() for predicted in maps]

    def fields(self) -> dict[str, Check]:
        """Return the check of each field that `metrics` reads."""
        return {"counts": list_of(_is_count), "map": is_grid}

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return mean IoU and pixel accuracy in percent, the drop of the former, and the agreement."""
        classes = sorted({row[0] for record in (*done, *unmerged) for row in record["counts"]})
        counts, before = _table(done, classes), _table(unmerged, classes)  # (samples, 3 * classes)
        intersection, _, target = counts.sum(axis=0).reshape(-1, 3).T
        same = [(unpack_grid(a["map"]) == unpack_grid(b["map"])).mean() for a, b in zip(done, unmerged)]
        return {
            "miou": float(mean_iou(counts.sum(axis=0)[None])[0]),
            "pixel_accuracy": float(100 * intersection.sum() / max(target.sum(), 1)),
            "agreement": float(100 * np.mean(same)),
            **ratio_drop(counts, before, mean_iou),
        }


def count_classes(predicted: np.ndarray, target: np.ndarray) -> list[list[int]]:
    """Return, for each class that is predicted or right anywhere, [class, intersection, union, target] in pixels.

    Args:
        predicted: (H, W), classes.
        target: (H, W), classes; below 0 where the prediction does not count.
    """
    counted = target >= 0
    predicted, target = predicted[counted].astype(np.int64), target[counted].astype(np.int64)
    size = int(max(predicted.max(initial=0), target.max(initial=0))) + 1
    hits = np.bincount(target[predicted == target], minlength=size)
    right, claimed = np.bincount(target, minlength=size), np.bincount(predicted, minlength=size)
    union = right + claimed - hits
    return [[int(at), int(hits[at]), int(union[at]), int(right[at])] for at in np.flatnonzero(union)]


def mean_iou(sums: np.ndarray) -> np.ndarray:
    """Return the mean over classes of intersection over union, in percent.

    Args:
        sums: (resamples, 3 * classes), of each class intersection, union and target; a class without a union does not
            count.
    """
    intersection, union, _ = np.moveaxis(sums.reshape(len(sums), -1, 3), 2, 0)  # (resamples, classes) each
    present = union > 0
    shares = np.divide(intersection, union, out=np.zeros_like(intersection, dtype=float), where=present)
    return 100 * shares.sum(axis=1) / np.maximum(present.sum(axis=1), 1)


def _table(records: Sequence[Record], classes: Sequence[int]) -> np.ndarray:
    at = {name: position for position, name in enumerate(classes)}
    table = np.zeros((len(records), len(classes), 3))
    for row, record in zip(table, records):
        for name, *counts in record["counts"]:
            row[at[name]] = counts
    return table.reshape(len(records), -1)


@dataclass(frozen=True)
class DepthScorer(PostProcessed):
    """Scores depths, by `post_process_depth_estimation`.

    Attributes:
        inverse: whether the model's values are inverse depths of unknown scale and shift, which are then fitted to
            each image by least squares, as for MiDaS, DPT and Depth Anything.
    """

    inverse: bool

    def records(self, samples: Sequence[Sample], output: Outputs) -> list[Record]:
        """Keep the errors of each image, and some of the map."""
        sizes = [sample.content.values.shape for sample in samples]
        process = self.processor.post_process_depth_estimation
        images = [sample.content.image.size[::-1] for sample in samples]
        more = {"source_sizes": images} if "source_sizes" in inspect.signature(process).parameters else {}
        maps = process(SimpleNamespace(**output), target_sizes=sizes, **more)
        records: list[Record] = []
        for sample, output_map in zip(samples, maps):
            predicted = output_map["predicted_depth"].numpy().astype(np.float64)
            errors = depth_errors(predicted, sample.content.values, self.inverse)
            records.append({"label": sample.label, **errors, "map": pack_grid(_in_steps(predicted))})
        return records

    def fields(self) -> dict[str, Check]:
        """Return the check of each field that `metrics` reads."""
        return {"abs_rel": is_amount, "delta1": is_amount, "map": is_grid}

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return delta1 in percent, the absolute relative error, the drop of the former, and the agreement."""
        within, before = (np.array([record["delta1"] for record in records]) for records in (done, unmerged))
        same = [correlation(unpack_grid(a["map"]), unpack_grid(b["map"])) for a, b in zip(done, unmerged)]
        return {
            "delta1": float(within.mean()),
            "abs_rel": float(np.mean([record["abs_rel"] for record in done])),
            "agreement": float(100 * np.mean(same)),
            **mean_drop(within, before),
        }


def depth_errors(predicted: np.ndarray, target: np.ndarray, inverse: bool) -> dict[str, float]:
    """Return the mean absolute relative error, and delta1 in percent, where the target (H, W) is above 0."""
    is_measured = np.isfinite(target) & (target > 0)
    depth, values = target[is_measured].astype(np.float64), predicted[is_measured]
    if inverse:
        design = np.stack([values, np.ones_like(values)], axis=1)
        scale, shift = np.linalg.lstsq(design, 1 / depth, rcond=None)[0]
        values = 1 / np.maximum(scale * values + shift, 1 / depth.max())
    values = np.maximum(values, 1e-6)
    ratio = np.maximum(values / depth, depth / values)
    return {
        "abs_rel": float(np.mean(np.abs(values - depth) / depth)),
        "delta1": float(100 * np.mean(ratio < WITHIN)),
    }


def correlation(first: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two maps; of constant ones 1 if both are."""
    a, b = (values.astype(np.float64) - values.mean() for values in (first, other))
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm > 0 else float(not a.any() and not b.any())


def _in_steps(values: np.ndarray) -> np.ndarray:
    """Return values in 65,536 steps from the smallest to the largest: a correlation sees no scale."""
    low, high = values.min(), values.max()
    return np.rint((values - low) * (STEPS / max(high - low, 1e-12)))


def pack_grid(values: np.ndarray) -> str:
    """Return integers of 0 to 65,535 at up to `GRID` x `GRID` places of a map (H, W) as text."""
    rows, columns = (np.linspace(0, size - 1, min(size, GRID)).astype(int) for size in values.shape)
    return base64.b64encode(zlib.compress(values[np.ix_(rows, columns)].astype("<u2").tobytes())).decode()


def unpack_grid(text: str) -> np.ndarray:
    """Return the values of `pack_grid`, (places,)."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype="<u2")


def is_grid(value: Any) -> bool:
    """Tell whether a value is what `pack_grid` gave."""
    try:
        return len(unpack_grid(value)) > 0
    except (TypeError, ValueError, zlib.error, binascii.Error):
        return False


def _is_count(value: Any) -> bool:
    return list_of(is_index)(value) and len(value) == 4

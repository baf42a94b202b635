"""What merging costs, with a 95 % interval, where measures are no plain hits: a bootstrap over the same samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Generic, TypeVar

import numpy as np

Result = TypeVar("Result")

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEWEST_RESAMPLES = 200
WORK = 1_000_000_000
"""Numbers that a bootstrap of average precisions goes through at most, where that leaves `FEWEST_RESAMPLES`."""
AT_ONCE = 10_000_000
"""Numbers held in memory at once."""


def unchanged_bound(samples: int) -> float:
    """Return the points that merging may cost, at 95 % confidence, where none of so many samples changed.

    Samples that never change give a bootstrap interval of 0 to 0, however few they are. The rate of changes that
    Clopper and Pearson's exact interval still allows is `1 - (tail) ** (1 / samples)`.
    """
    tail = (1 - CONFIDENCE) / 2
    return 100 * (1 - tail ** (1 / samples))


def hit_drop(lost: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Return the drop of hits and its interval.

    Args:
        lost: for each sample 1 for a hit lost, 0 for none, -1 for one gained.
        drawn: drops of the resamples, in points.
    """
    columns = describe_drop(100 * int(lost.sum()) / len(lost), drawn)
    if not lost.any():
        bound = unchanged_bound(len(lost))
        columns |= {"drop_low": -bound, "drop_high": bound}
    return columns


def describe_drop(drop: float, drawn: np.ndarray) -> dict[str, float]:
    """Return the columns of a drop and its percentile interval, from the drops of the resamples."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return {"drop": float(drop), "drop_low": float(low), "drop_high": float(high)}


def mean_drop(merged: np.ndarray, unmerged: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Return the drop of a measure that is a mean over samples, of which each has a value (samples,)."""
    lost = np.asarray(unmerged, dtype=float) - np.asarray(merged, dtype=float)
    if not lost.any():
        # A sample that changes loses or gains at most the best score that there is.
        bound = unchanged_bound(len(lost)) / 100 * float(np.max(merged))
        return {"drop": 0.0, "drop_low": -bound, "drop_high": bound}
    drawn = [lost[which].mean(axis=1) for which in _draws(len(lost), RESAMPLES, seed)]
    return describe_drop(lost.mean(), np.concatenate(drawn))


def paired_drop(merged: np.ndarray, unmerged: np.ndarray) -> dict[str, float]:
    """Return the drop of a measure that is given over all samples, then over each resample (1 + resamples,)."""
    drops = unmerged - merged
    return describe_drop(drops[0], drops[1:])


def mean_precisions(
    scores: np.ndarray, targets: np.ndarray, *, seed: int = 0, resamples: int | None = None
) -> np.ndarray:
    """Return mean average precision in percent over all samples, then over each resample (1 + resamples,).

    Args:
        scores: (samples, classes).
        targets: 0 or 1 (samples, classes).
        seed: for the resamples.
        resamples: how many; by default 10,000, or fewer where samples and classes are many.
    """
    if resamples is None:
        resamples = min(RESAMPLES, max(FEWEST_RESAMPLES, WORK // targets.size))
    counts = chain([np.ones((len(targets), 1))], draw_counts(len(targets), resamples, seed))
    return 100 * np.concatenate([_mean_precision(scores, targets, each) for each in counts])


class LastResult(Generic[Result]):
    """What a function of records returned last, for as long as it is called with the same records.

    The resamples of the unmerged model are the same for every config that is compared with it.
    """

    def __init__(self, function: Callable[[Sequence[Any]], Result]):
        self.function = function
        self.last: tuple[list[Any], Result] | None = None

    def __call__(self, records: Sequence[Any]) -> Result:
        """Return what the function gives for the records."""
        if self.last is None or self.last[0] != list(records):
            self.last = (list(records), self.function(records))
        return self.last[1]


def _draws(samples: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield which samples are in each resample (resamples, samples), some resamples at once."""
    generator, rows = np.random.default_rng(seed), max(1, AT_ONCE // samples)
    for start in range(0, resamples, rows):
        yield generator.integers(samples, size=(min(rows, resamples - start), samples))


def _count(which: np.ndarray) -> np.ndarray:
    """Return how often each sample is in each resample (samples, resamples), in float32, which holds them exactly."""
    resamples, samples = which.shape
    places = which * resamples + np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=which.size).reshape(samples, resamples).astype(np.float32)


def _mean_precision(scores: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean average precision of each resample; classes that it has no positive sample of are left out."""
    total, present = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for class_scores, right in zip(scores.T, targets.T):
        if right.any():
            precision = _average_precision(class_scores, right, counts)
            total += np.nan_to_num(precision)
            present += ~np.isnan(precision)
    return np.divide(total, present, out=np.full(len(total), np.nan), where=present > 0)


def _average_precision(scores: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return scikit-learn's average precision of one class for samples counted so often (samples, resamples)."""
    order = np.argsort(-scores, kind="stable")
    last = np.searchsorted(-scores[order], -scores[order], side="right") - 1  # of the samples with the same score
    positive = np.flatnonzero(right[order])
    ends, first = np.unique(last[positive], return_index=True)
    # Only where a positive is found does the recall grow: sums up to there are all that is needed.
    gained = np.add.reduceat(counts[order[positive]], first, axis=0).astype(float)
    between = np.add.reduceat(counts[order[: ends[-1] + 1]], [0, *(ends[:-1] + 1)], axis=0).astype(float)
    hits, seen = gained.cumsum(axis=0), between.cumsum(axis=0)
    area = (gained * hits / np.maximum(seen, 1)).sum(axis=0)
    return np.divide(area, hits[-1], out=np.full(len(area), np.nan), where=hits[-1] > 0)


def ratio_drop(
    merged: np.ndarray, unmerged: np.ndarray, score: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> dict[str, float]:
    """Return the drop of a measure of counts that are summed over the samples, such as a ratio of two.

    Args:
        merged, unmerged: counts of each sample (samples, K).
        score: sums (resamples, K) to the measure of each (resamples,).
        seed: for the resamples.
    """
    merged, unmerged = np.asarray(merged, dtype=float), np.asarray(unmerged, dtype=float)
    total = float(score(unmerged.sum(axis=0)[None])[0] - score(merged.sum(axis=0)[None])[0])
    if np.array_equal(merged, unmerged):
        bound = unchanged_bound(len(merged))
        return {"drop": 0.0, "drop_low": -bound, "drop_high": bound}
    resamples = min(RESAMPLES, max(FEWEST_RESAMPLES, WORK // merged.size))
    drawn = []
    for which in _draws(len(merged), resamples, seed):
        counts = _count(which).T.astype(float)  # (resamples, samples)
        drawn.append(score(counts @ unmerged) - score(counts @ merged))
    return describe_drop(total, np.concatenate(drawn))


def draw_counts(samples: int, resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield how often each sample is in each resample (samples, resamples), some resamples at once."""
    yield from map(_count, _draws(samples, resamples, seed))

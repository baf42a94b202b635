"""What merging costs, with a 95 % interval, where measures are no plain hits: a bootstrap over the same samples."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEWEST_RESAMPLES = 200
WORK = 1_000_000_000
"""Numbers that a bootstrap of average precisions goes through at most, where that leaves `FEWEST_RESAMPLES`."""
AT_ONCE = 10_000_000
"""Numbers held in memory at once."""


def describe_drop(drop: float, drawn: np.ndarray) -> dict[str, float]:
    """Return the columns of a drop and its percentile interval, from the drops of the resamples."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return {"drop": float(drop), "drop_low": float(low), "drop_high": float(high)}


def mean_drop(merged: np.ndarray, unmerged: np.ndarray, *, seed: int = 0) -> dict[str, float]:
    """Return the drop of a measure that is a mean over samples, of which each has a value (samples,)."""
    lost = np.asarray(unmerged, dtype=float) - np.asarray(merged, dtype=float)
    drawn = [counts @ lost / len(lost) for counts in _draws(len(lost), RESAMPLES, seed)]
    return describe_drop(lost.mean(), np.concatenate(drawn))


def precision_drop(
    merged: np.ndarray, unmerged: np.ndarray, targets: np.ndarray, *, seed: int = 0, resamples: int | None = None
) -> dict[str, float]:
    """Return the drop of mean average precision in percent.

    Args:
        merged, unmerged: scores (samples, classes).
        targets: 0 or 1 (samples, classes).
        seed: for the resamples.
        resamples: how many; by default 10,000, or fewer where samples and classes are many.
    """
    if resamples is None:
        resamples = min(RESAMPLES, max(FEWEST_RESAMPLES, WORK // targets.size))
    everything = np.ones((1, len(targets)))
    drop = _mean_precision(unmerged, targets, everything) - _mean_precision(merged, targets, everything)
    drawn = [
        _mean_precision(unmerged, targets, counts) - _mean_precision(merged, targets, counts)
        for counts in _draws(len(targets), resamples, seed)
    ]
    return describe_drop(100 * drop[0], 100 * np.concatenate(drawn))


def _draws(samples: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each sample is in each resample, some resamples at once."""
    generator, rows = np.random.default_rng(seed), max(1, AT_ONCE // samples)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        yield generator.multinomial(samples, np.full(samples, 1 / samples), size=count).astype(float)


def _mean_precision(scores: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean average precision of each resample; classes that it has no positive sample of are left out."""
    total, present = np.zeros(len(counts)), np.zeros(len(counts))
    for found, right in zip(scores.T, targets.T):
        precision = _average_precision(found, right, counts)
        total += np.nan_to_num(precision)
        present += ~np.isnan(precision)
    return np.divide(total, present, out=np.full(len(counts), np.nan), where=present > 0)


def _average_precision(scores: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return scikit-learn's average precision of one class for samples counted so often (resamples, samples)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of samples with the same score
    drawn = counts[:, order]
    hits, seen = (np.cumsum(numbers, axis=1)[:, ends] for numbers in (drawn * right[order], drawn))
    gained = np.diff(hits, axis=1, prepend=0)
    area = (gained * hits / np.maximum(seen, 1)).sum(axis=1)
    return np.divide(area, hits[:, -1], out=np.full(len(counts), np.nan), where=hits[:, -1] > 0)

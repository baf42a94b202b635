"""Boxes as records: which of them match the right ones, as COCO's evaluation matches, and how many two models share.

Whether a box matches depends on its own image alone, so it is settled there; average precision is over all images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST = 100
"""Boxes of an image that count, the most confident ones."""
SHARED = 0.5
"""IoU from which on a box of the merged model is the unmerged model's."""


def box_iou(boxes: np.ndarray, others: np.ndarray, crowd: np.ndarray | None = None) -> np.ndarray:
    """Return the IoU (N, M) of boxes (N, 4) and others (M, 4), by corners x0, y0, x1, y1; of crowds over the box."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)  # (N, M)
    own, theirs = (np.prod(np.clip(each[:, 2:] - each[:, :2], 0, None), axis=1) for each in (boxes, others))
    union = own[:, None] + theirs[None] - shared
    if crowd is not None:
        union = np.where(crowd[None], own[:, None], union)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match_boxes(
    classes: np.ndarray, boxes: np.ndarray, target_classes: np.ndarray, targets: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match the boxes of an image, most confident first, to the right ones of their classes.

    A box takes the right one of largest IoU that is still free; crowds take any number, and such a box counts neither
    as right nor as wrong.

    Returns:
        Whether each box is right, and whether it does not count, (N, thresholds) each.
    """
    right, ignored = (np.zeros((len(boxes), len(THRESHOLDS)), dtype=bool) for _ in range(2))
    for name in np.unique(classes):
        mine = np.flatnonzero(classes == name)
        theirs = np.flatnonzero(target_classes == name)
        theirs = theirs[np.argsort(crowd[theirs], kind="stable")]  # crowds last
        overlaps = box_iou(boxes[mine], targets[theirs], crowd[theirs])
        for at, threshold in enumerate(THRESHOLDS):
            matches = _match(overlaps, crowd[theirs], min(threshold, 1 - 1e-10))
            is_matched = matches >= 0
            right[mine, at] = is_matched
            if len(theirs):
                ignored[mine, at] = is_matched & crowd[theirs][np.maximum(matches, 0)]
    return right & ~ignored, ignored


def _match(overlaps: np.ndarray, crowd: np.ndarray, threshold: float) -> np.ndarray:
    """Return the right box that each box takes (N,), -1 for none."""
    free = np.ones(overlaps.shape[1], dtype=bool)
    matches = np.full(len(overlaps), -1)
    for row, overlap in enumerate(overlaps):
        for candidates in (free & ~crowd, crowd):
            best = np.where(candidates & (overlap >= threshold), overlap, -1.0)
            if len(best) and best.max() >= 0:
                # Of several as large the last one, as pycocotools takes them.
                matches[row] = len(best) - 1 - int(best[::-1].argmax())
                free[matches[row]] = False
                break
    return matches


def shared_boxes(
    classes: np.ndarray, boxes: np.ndarray, others_classes: np.ndarray, others: np.ndarray, scores: np.ndarray
) -> float:
    """Return the share of one model's boxes that another has, weighted by the first one's confidence; 0 to 1.

    Args:
        classes, boxes: of the other model, most confident first.
        others_classes, others, scores: of the first one, in any order.
    """
    if not len(others):
        return float(not len(boxes))
    same = (others[:, None] == boxes[None]).all(axis=2)  # boxes without an area too
    overlaps = np.where(same, 1.0, box_iou(others, boxes)) * (others_classes[:, None] == classes[None])
    matches = np.full(len(others), -1)
    free = np.ones(len(boxes), dtype=bool)
    for row in np.argsort(-scores, kind="stable"):
        best = np.where(free, overlaps[row], -1.0)
        if len(best) and best.max() >= SHARED:
            matches[row] = int(best.argmax())
            free[matches[row]] = False
    return float(scores[matches >= 0].sum() / max(scores.sum(), 1e-12))


def average_precision(
    scores: np.ndarray,
    image: np.ndarray,
    right: np.ndarray,
    ignored: np.ndarray,
    targets: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """Return COCO's average precision of one class at each IoU: the mean precision at 101 recalls.

    Args:
        scores: (D,), of all boxes of the class.
        image: (D,), the image of each.
        right, ignored: (D, thresholds), from `match_boxes`.
        targets: (images,), the right boxes of the class in each.
        counts: (images, resamples), how often an image is in each resample.

    Returns:
        (thresholds, resamples); NaN where there is no right box.
    """
    order = np.argsort(-scores, kind="stable")
    weights = counts[image[order]].astype(float)  # (D, resamples)
    total = targets @ counts  # (resamples,)
    areas = [_area(weights, hit, miss, total) for hit, miss in zip(right[order].T, ~(right | ignored)[order].T)]
    return np.where(total > 0, areas, np.nan)


def _area(weights: np.ndarray, right: np.ndarray, wrong: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the mean precision at 101 recalls of each resample (resamples,).

    Args:
        weights: (D, resamples), how often each box counts, the most confident first.
        right, wrong: (D,), of each box.
        total: (resamples,), the right boxes that there are.
    """
    hits = np.cumsum(weights * right[:, None], axis=0)
    misses = np.cumsum(weights * wrong[:, None], axis=0)
    precision = hits / np.maximum(hits + misses, np.finfo(float).eps)
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]  # the best at this recall or a larger one
    recall = hits / np.maximum(total, np.finfo(float).eps)
    levels = np.linspace(0, 1, 101)
    areas = np.zeros(len(total))
    for at in range(len(total)):
        places = np.searchsorted(recall[:, at], levels, side="left")
        areas[at] = np.append(precision[:, at], 0.0)[places].mean()
    return areas


def mean_average_precision(
    tables: Sequence[tuple[np.ndarray, ...]], counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mAP and AP50 of each resample in percent, over the classes that have a right box there.

    Args:
        tables: for each class the arguments of `average_precision`.
        counts: (images, resamples).
    """
    # (classes, thresholds, resamples)
    values = np.array(
        [
            average_precision(scores, image, right, ignored, targets, counts)
            for scores, image, right, ignored, targets in tables
        ]
    )
    if not len(values):
        empty = np.zeros(counts.shape[1])
        return empty, empty
    present = ~np.isnan(values[:, 0])
    means = [
        np.where(present, each, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
        for each in (values.mean(axis=1), values[:, 0])
    ]
    return 100 * means[0], 100 * means[1]

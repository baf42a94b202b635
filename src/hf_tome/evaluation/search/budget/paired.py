"""Pairs of variants over the same samples: how sure a difference is, and how many samples it would take."""

from __future__ import annotations

import math
from typing import Any

from ...metrics.bootstrap import mean_drop
from ...store.record import Scorer
from .trials import Trial


def samples_to_tell(best: Trial, other: Trial) -> int | None:
    """Return how many samples it would take to tell two trials apart; `None` where these do."""
    mean_difference = mean_drop(best.divergences, other.divergences)
    if mean_difference["drop_low"] > 0 or mean_difference["drop_high"] < 0:
        return None
    difference = other.divergences - best.divergences
    mean = abs(float(difference.mean()))
    if not mean:
        return 100 * len(difference)
    return max(len(difference) + 1, math.ceil((1.96 * float(difference.std(ddof=1)) / mean) ** 2))


def gain(scorer: Scorer, mine: dict[int, Any], theirs: dict[int, Any]) -> tuple[float, float, float] | None:
    """Return by how many points one variant is better than another over the samples of both, and the interval."""
    both = sorted(set(mine) & set(theirs))
    metrics = scorer.metrics([mine[at] for at in both], [theirs[at] for at in both])
    return (-metrics["drop"], -metrics["drop_high"], -metrics["drop_low"]) if "drop" in metrics else None

"""Pairs of variants over the same samples: how sure a difference is, and how many samples it would take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....config import MergeConfig
from ...metrics.bootstrap import mean_drop
from ...store.record import Record, Scorer
from .trials import Trial

Values = Mapping[str, np.ndarray]
"""By measure, what each sample (samples,) adds to it."""
Gains = dict[str, list[float]]
"""By how many points one variant is better than another, with the interval: of `points` and of `agreement`."""


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


def sample_values(scorer: Scorer, done: Sequence[Record], unmerged: Sequence[Record]) -> Values:
    """Return the measures that are means over the samples, by sample; none where a scorer has no such measure."""
    by_sample = getattr(scorer, "by_sample", None)
    return {} if by_sample is None else by_sample(done, unmerged)


def gains(scorer: Scorer, mine: Sequence[Record], theirs: Sequence[Record], unmerged: Sequence[Record]) -> Gains:
    """Return by how much one variant is better than another over the same samples."""
    metrics = scorer.metrics(mine, theirs)
    drops = ("drop", "drop_high", "drop_low")
    points = [0.0 - metrics[name] for name in drops] if "drop" in metrics else None  # 0 - 0 has no minus sign
    values = [sample_values(scorer, records, unmerged).get("agreement") for records in (mine, theirs)]
    return {
        **({} if points is None else {"points": points}),
        **({} if values[0] is None or values[1] is None else {"agreement": mean_gain(values[0], values[1])}),
    }


def describe_gains(label: str, measures: Mapping[str, Sequence[float]]) -> str:
    """Return gains over the variant of a label in words."""
    told = [f"{gain:+.1f} ({low:+.1f} to {high:+.1f}) {name}" for name, (gain, low, high) in measures.items()]
    return f"{', '.join(told)} against {label}"


def mean_gain(mine: np.ndarray, theirs: np.ndarray) -> list[float]:
    """Return by how much the mean of one variant's values (samples,) is above another's, and the interval."""
    drop = mean_drop(theirs, mine)
    return [drop["drop"], drop["drop_low"], drop["drop_high"]]


def break_even(front: Sequence[tuple[float, float]], to_beat: float) -> float | None:
    """Return the budget from which on a front takes less time than what it has to beat; `None` where it nowhere does.

    Args:
        front: budgets and times, from mild to strong; in between, times are interpolated.
        to_beat: a time.
    """
    for at, (budget, seconds) in enumerate(front):
        if seconds < to_beat:
            if at == 0:
                return budget
            before, longer = front[at - 1]
            return budget + (before - budget) * (to_beat - seconds) / (longer - seconds)
    return None


def share_of_slower(seconds: float, faster: float, slower: float) -> float:
    """Return the share of the samples with which a mix of two variants takes `seconds` a sample on average."""
    return min(max((seconds - faster) / (slower - faster), 0.0), 1.0) if slower > faster else 0.0


def mixed_values(faster: Values, slower: Values, share: float) -> Values:
    """Return what each sample is expected to add, if a share of the samples, drawn at random, gets the slower one."""
    return {name: (1 - share) * faster[name] + share * slower[name] for name in faster}


def mixed_row(
    faster: Mapping[str, Any],
    slower: Mapping[str, Any],
    share: float,
    mixed: Values,
    unmerged: Values,
    measure: str,
) -> dict[str, Any]:
    """Return the row of a mix: costs and measures are means over the samples, the speed-up that of the mean time.

    Args:
        faster, slower: the rows of both variants.
        share: of the samples that get the slower one.
        mixed, unmerged: by sample.
        measure: what points are lost of.
    """
    row = {**slower, "config": MergeConfig().to_dict(), "control": "smaller images, mixed"}
    row["name"] = f"{1 - share:.1%} at {faster['name']}, {share:.1%} at {slower['name']}"
    row.pop("image_size", None)
    for name in ("tokens", "gflops"):
        if faster[name] is not None and slower[name] is not None:
            row[name] = (1 - share) * faster[name] + share * slower[name]
    for name in ("samples_per_second", "speedup", "speedup_low", "speedup_high"):
        row[name] = 1 / ((1 - share) / faster[name] + share / slower[name])
    row |= {name: float(values.mean()) for name, values in mixed.items()}
    return {**row, **mean_drop(mixed[measure], unmerged[measure])}

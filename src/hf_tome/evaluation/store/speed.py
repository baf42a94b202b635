"""Speed from paired rounds: each holds the seconds a sample of the variants that ran interleaved on one batch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...profiling.rounds import Spread, doubts
from ..variants import UNMERGED

Rounds = Mapping[Any, Mapping[str, float]]
SPEED_COLUMNS = ("samples_per_second", "speedup", "speedup_low", "speedup_high")


def speed(rounds: Rounds, name: str) -> dict[str, float | None]:
    """Return the speed columns of a variant: median and quartiles of its speed-up over the rounds that it shares.

    Only times of the same round are compared. The samples a second are the unmerged model's (by its median) times the
    speed-up, so that both columns tell the same.
    """
    shared = [seconds for seconds in rounds.values() if UNMERGED in seconds and name in seconds]
    if not shared:
        return dict.fromkeys(SPEED_COLUMNS)
    unmerged = statistics.median(seconds[UNMERGED] for seconds in rounds.values() if UNMERGED in seconds)
    speedup = Spread.of([seconds[UNMERGED] / seconds[name] for seconds in shared])
    values = (speedup.median / unmerged, speedup.median, speedup.low, speedup.high)
    return dict(zip(SPEED_COLUMNS, values))


def doubtful_speeds(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each speed-up that should not be trusted; the first row is the unmerged model."""
    for row in rows[1:]:
        if row["speedup"] is None:
            continue
        # Where text is generated, the multiply-adds of the tower say nothing about the language model's.
        has_gflops = row["gflops"] and rows[0]["gflops"] and "new_tokens" not in row
        allowed = rows[0]["gflops"] / row["gflops"] if has_gflops else None
        yield from doubts(row["name"], Spread(row["speedup"], row["speedup_low"], row["speedup_high"]), allowed)

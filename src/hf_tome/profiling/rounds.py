"""Timing in paired rounds: every variant runs once a round, and ratios are taken within rounds.

A machine that slows down slows all variants of a round, and the spread of the ratios says how far they can be trusted.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from .measure import synchronize

Name = TypeVar("Name", bound=Hashable)
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "process": time.process_time}
"""`"process"` is the processor time of this process, summed over its threads: other jobs on the machine disturb it
little. It does not count the time of an accelerator."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        if len(values) == 1:
            return Spread(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}-{self.high:.3f})"


def clock_for(device: torch.device | str, clock: str = "auto") -> str:
    """Return the name of the clock: for `"auto"` processor time on a CPU, and wall time where there is an accelerator.

    Raises:
        ValueError: an unknown clock, or processor time on an accelerator.
    """
    on_cpu = torch.device(device).type == "cpu"
    if clock == "auto":
        return "process" if on_cpu else "wall"
    if clock not in CLOCKS:
        raise ValueError(f"`clock` is {clock!r}; it takes one of {', '.join(map(repr, ('auto', *CLOCKS)))}.")
    if clock == "process" and not on_cpu:
        raise ValueError(f"`clock` is 'process', which does not count the time of {device}; use 'wall' or 'auto'.")
    return clock


def time_once(run: Callable[[], object], clock: str, device: torch.device) -> float:
    """Return the seconds of one run, the accelerator's work included."""
    now = CLOCKS[clock]
    synchronize(device)
    start = now()
    run()
    synchronize(device)
    return now() - start


def interleave(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 2,
    clock: str = "auto",
    device: torch.device | str = "cpu",
) -> dict[str, list[float]]:
    """Time each of `runs` once a round, and return the seconds of every round by name.

    The order is turned round every other round, so that no variant always follows the same one.
    """
    clock, device = clock_for(device, clock), torch.device(device)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(-warmup, rounds):
        for name in list(runs)[:: 1 if step % 2 == 0 else -1]:
            taken = time_once(runs[name], clock, device)
            if step >= 0:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: Mapping[Name, Sequence[float]], slow: Name, fast: Name) -> Spread:
    """Return by how much `fast` is faster than `slow`, from runs of the same round."""
    return Spread.of([before / after for before, after in zip(seconds[slow], seconds[fast])])


def available_cores() -> float:
    """Return the cores that this process may use, by its affinity and the limit of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_LIMIT.read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return cores


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute; `None` where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


ALLOWED_EXCESS = 4 / 3
"""A measured speed-up may exceed the ratio of the multiply-adds by this factor before it is doubted."""


def doubts(name: str, speedup: Spread, allowed: float | None) -> Iterable[str]:
    """Yield why a measured speed-up should not be trusted.

    Args:
        name: what is as fast as that.
        speedup: over the unmerged model, from paired rounds.
        allowed (`float`, *optional*): the ratio of the multiply-adds, unmerged to merged.
    """
    if speedup.high - speedup.low > abs(speedup.median - 1) and speedup.high > speedup.low:
        yield f"the speed-up of {name}, {speedup}, is smaller than its spread: measure more, or on an idle machine"
    if allowed is not None and speedup.median > ALLOWED_EXCESS * max(allowed, 1):
        yield (
            f"the speed-up of {name}, {speedup.median:.2f}, is more than its multiply-adds allow ({allowed:.2f}): "
            "something else disturbed the clock"
        )


def doubt_of_load(load: float | None, cores: float) -> str | None:
    """Return why times cannot be trusted where more processes want to run than there are cores, or `None`."""
    if load is None or load <= cores:
        return None
    return f"the load of the machine ({load:.1f}) exceeds its {cores:g} cores: speeds are not to be trusted"

"""Find the strongest merge that costs at most so much: along r and along MaMe's threshold, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..apply import apply, remove
from ..benchmark import interleave, ratio
from ..config import METHOD_FIELDS, MergeConfig
from ..oracle import twin
from ..report import report
from .config_text import format_config
from .data import DataError
from .inputs import first_batch
from .job import Job
from .output import QUALITY
from .results import Results
from .task import Progress, evaluate
from .variants import UNMERGED

THRESHOLDS = tuple(step / 100 for step in range(98, 38, -2))
"""MaMe's, from one that merges hardly anything to one that merges nearly everything."""

CRITERIA = {
    "speedup": "the measured speed-up",
    "gflops": "the GFLOPs",
}
ROUNDS = 10
"""Timed runs of the unmerged model and of each method's best, in turns."""


class TuneError(ValueError):
    """No config meets the target; the message says how near the mildest ones come."""


@dataclass(frozen=True)
class Target:
    """What merging may cost.

    Attributes:
        max_drop: points lost, of accuracy, mean average precision where samples have several labels, or CIDEr.
        min_agreement: percent of the samples that get the unmerged model's class or words; `None` for any.
        sure: the upper end of the drop's 95 % interval must be within `max_drop`, not the drop alone.
    """

    max_drop: float = 1.0
    min_agreement: float | None = None
    sure: bool = False

    def __post_init__(self) -> None:
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 100:
            raise ValueError(f"The least agreement is {self.min_agreement}; it takes a percentage, 0 to 100.")

    def drop(self, row: Mapping[str, Any], unmerged: Mapping[str, Any]) -> float:
        """Return the points that a row loses."""
        if self.sure and "drop_high" in row:
            return row["drop_high"]
        metric = next(name for name in ("map", *QUALITY) if name in row)
        return unmerged[metric] - row[metric]

    def met(self, row: Mapping[str, Any], unmerged: Mapping[str, Any]) -> bool:
        """Tell whether a row costs no more than it may."""
        agrees = self.min_agreement is None or row["agreement"] >= self.min_agreement
        return agrees and self.drop(row, unmerged) <= self.max_drop


def candidates(job: Job, method: str) -> list[MergeConfig]:
    """Return configs of a method from mild to strong: of r from 1 to twice what leaves no tokens, or of thresholds.

    Raises:
        ValueError: an unknown method.
    """
    if method not in METHOD_FIELDS:
        raise ValueError(f"Unknown method {method!r}; known are {', '.join(METHOD_FIELDS)}.")
    if "threshold" in METHOD_FIELDS[method]:
        return [MergeConfig(method=method, threshold=threshold) for threshold in THRESHOLDS]
    tokens, blocks = _size(job)
    return [MergeConfig(method=method, r=r) for r in range(1, max(2, 2 * tokens // blocks) + 1)]


def tune(
    job: Job,
    methods: Sequence[str] = ("tome", "mame"),
    target: Target | None = None,
    *,
    out: Path,
    by: str = "speedup",
    batch_size: int = 16,
    on_progress: Callable[[str], Progress] | None = None,
) -> tuple[MergeConfig, Results]:
    """Return the config that gains most within the target, and the results of all that were tried.

    Along each method's candidates the strongest one within the target is found by bisection, which takes for granted
    that a stronger merge costs more. Those of all methods are then timed in turns with the unmerged model, on one
    batch, and the best by the criterion wins; the others have no speed, since they ran at different times.

    Args:
        job: the model, its data and how the two meet.
        methods: merging methods.
        target: what merging may cost; one point of accuracy by default.
        out: folder for each sample's results; the same call goes on with a run that was killed.
        by: the criterion, `"speedup"` or `"gflops"`.
        batch_size: samples in a batch.
        on_progress: given a config's name, returns what `evaluate` reports progress to.

    Raises:
        TuneError: no config is within the target.
        ValueError: an unknown method or criterion, or what `evaluate` raises.
    """
    if by not in CRITERIA:
        raise ValueError(f"Unknown criterion {by!r}; known are {', '.join(CRITERIA)}.")
    target = target or Target()
    tried: list[MergeConfig] = []
    best: dict[str, MergeConfig] = {}

    def is_met(config: MergeConfig) -> bool:
        tried.append(config)
        update = on_progress(format_config(config)) if on_progress else None
        found = evaluate(job, [config], batch_size=batch_size, on_progress=update, out=out, speedups=False)
        unmerged, row = found.rows
        if target.met(row, unmerged):
            best[config.method] = config  # bisection moves on to stronger ones
            return True
        return False

    for method in methods:
        _bisect(candidates(job, method), is_met)
    results = evaluate(job, tried, batch_size=batch_size, out=out)  # all are done; this puts them in one table
    if not best:
        raise TuneError(_explain(results.rows[1:], results.rows[0], target))
    _time(job, list(best.values()), results, batch_size)
    rows = {row["name"]: row for row in results.rows}
    found = {name: rows[name] for name in map(format_config, best.values())}
    chosen = max(found, key=lambda name: found[name]["speedup"] if by == "speedup" else -found[name]["gflops"])
    results.run["notes"] = [f"chosen by {CRITERIA[by]} among the strongest within the target: {chosen}"]
    return next(config for config in best.values() if format_config(config) == chosen), results


@torch.inference_mode()
def _time(job: Job, configs: Sequence[MergeConfig], results: Results, batch_size: int) -> None:
    """Give the unmerged row and those of some configs the speed measured in turns, and the others none."""
    batch = first_batch(job, batch_size)
    if batch is None:  # all files vanished since they were evaluated
        raise DataError(f"No sample in split {job.data.split!r} of {job.data.name} could be read.")
    models = {UNMERGED: job.model} | {format_config(config): apply(twin(job.model), config) for config in configs}
    runs = {name: partial(job.run, model, batch.inputs) for name, model in models.items()}
    seconds = interleave(runs, ROUNDS, device=job.model.device)
    for row in results.rows:
        is_timed = row["name"] in seconds
        row["samples_per_second"] = len(batch.samples) / median(seconds[row["name"]]) if is_timed else None
        row["speedup"] = ratio(seconds, UNMERGED, row["name"]).median if is_timed else None


def _bisect(configs: Sequence[MergeConfig], is_met: Callable[[MergeConfig], bool]) -> None:
    """Try the configs that lead to the last one that is met, where all before it are."""
    low, high = 0, len(configs)  # those before `low` are met, those from `high` on are not
    while low < high:
        middle = (low + high) // 2
        if is_met(configs[middle]):
            low = middle + 1
        else:
            high = middle


@torch.inference_mode()
def _size(job: Job) -> tuple[int, int]:
    """Return the tokens and the blocks of the model on one sample."""
    batch = first_batch(job, 1)
    if batch is None:
        raise DataError(f"No sample in split {job.data.split!r} of {job.data.name} could be read.")
    apply(job.model, MergeConfig())
    try:
        job.run(job.model, batch.inputs)
        tokens = report(job.model).towers[0].tokens or ()
    finally:
        remove(job.model)
    return int(tokens[0][0]), len(tokens)


def _explain(rows: Sequence[Mapping[str, Any]], unmerged: Mapping[str, Any], target: Target) -> str:
    nearest = min(rows, key=lambda row: target.drop(row, unmerged))
    wanted = f"at most {target.max_drop:g} points"
    if target.min_agreement is not None:
        wanted += f" and agrees with the unmerged model on {target.min_agreement:g} % of the samples"
    return (
        f"No config loses {wanted}; the nearest, {nearest['name']}, loses {target.drop(nearest, unmerged):.2f} points"
        f"{' (upper end of the interval)' if target.sure else ''} and agrees on {nearest['agreement']:.1f} %. "
        "Allow more, evaluate more samples, or take a larger model."
    )

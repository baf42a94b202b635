"""Find the strongest merge whose cost is within a target, along r and along MaMe's threshold, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...api import apply, remove
from ...config import MergeConfig, format_config
from ...inspection.flops import token_counts
from ...inspection.reports import Report, report
from ...merging.methods import get_method
from ...profiling.rounds import interleave
from ...profiling.slice_oracle import shallow_copy
from ..job import Job
from ..metrics.bootstrap import unchanged_bound
from ..model_state import plain_model
from ..reporting.tables import quality
from ..running.batches import first_batch
from ..running.loop import Progress
from ..running.runner import evaluate
from ..store.results import Results
from ..store.speed import doubtful_speeds, speed
from ..variants import UNMERGED

CRITERIA = {
    "speedup": "the measured speed-up",
    "gflops": "the GFLOPs",
}
SAMPLE_COUNTS = range(1, 1_000_001)
PROJECTED = "projected"
"""The place where tokens merge once, between tower and language model."""
HITS = ("top1", "accuracy")
"""The measures that count samples."""
ROUNDS = 10
"""Timed runs of the unmerged model and of each method's best, interleaved."""


class TuneError(ValueError):
    """No config meets the target; the message says how near the mildest ones come.

    Attributes:
        results: of the configs that were tried.
    """

    def __init__(self, message: str, results: Results):
        super().__init__(message)
        self.results = results


@dataclass(frozen=True)
class Target:
    """What merging may cost.

    Attributes:
        max_drop: points lost, of accuracy, mean average precision where samples have several labels, or CIDEr.
        min_agreement: percent of the samples that get the unmerged model's class or words; `None` for any.
        sure: the upper end of the drop's 95 % interval must be within `max_drop`; else the drop alone.
    """

    max_drop: float = 1.0
    min_agreement: float | None = None
    sure: bool = True

    def __post_init__(self) -> None:
        if not self.max_drop >= 0:
            raise ValueError(f"The drop that is allowed is {self.max_drop:g} points; it takes a number of at least 0.")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 100:
            raise ValueError(f"The least agreement is {self.min_agreement}; it takes a percentage, 0 to 100.")

    def drop(self, row: Mapping[str, Any], unmerged: Mapping[str, Any]) -> float:
        """Return the points that a row loses."""
        if self.sure and "drop_high" not in row:
            raise ValueError("These results have no interval of the drop, which `sure` needs.")
        if self.sure:
            return row["drop_high"]
        metric = quality(row).key
        return unmerged[metric] - row[metric]

    def met(self, row: Mapping[str, Any], unmerged: Mapping[str, Any]) -> bool:
        """Tell whether a row costs no more than it may."""
        agrees = self.min_agreement is None or row["agreement"] >= self.min_agreement
        return agrees and self.drop(row, unmerged) <= self.max_drop


def candidates(job: Job, method: str, where: str = "auto") -> list[MergeConfig]:
    """Return configs of a method from mild to strong: its own values, or of r from 1 to twice what leaves no tokens.

    A larger r that would leave as many tokens after every block is left out. Where projected tokens merge, once, r
    goes up to all of them but one.

    Raises:
        ValueError: an unknown method.
    """
    row = get_method(method)
    if row.search_field != "r":
        fields = {"method": method, "where": where}
        return [MergeConfig.from_dict({**fields, row.search_field: value}) for value in row.search_values]
    if where == PROJECTED:
        projected = _first_report(job, MergeConfig(r=1, where=where)).towers[0].tokens or ((0, 0),)
        tokens = int(projected[0][0])
        return [MergeConfig(method=method, r=r, where=where) for r in range(1, tokens)]
    tower = _first_report(job, MergeConfig(where=where)).towers[0]
    counts = tower.tokens or ()
    tokens, blocks = int(counts[0][0]), len(counts)
    by_path: dict[tuple, MergeConfig] = {}
    for r in range(1, max(2, 2 * tokens // blocks) + 1):
        path = tuple(token_counts(tokens, tower.num_prefix_tokens, [r] * blocks))
        by_path.setdefault(path, MergeConfig(method=method, r=r, where=where))
    return list(by_path.values())


def tune(
    job: Job,
    methods: Sequence[str] = ("tome", "mame"),
    target: Target | None = None,
    *,
    out: Path,
    by: str = "speedup",
    where: str = "auto",
    batch_size: int = 16,
    on_progress: Callable[[str], Progress] | None = None,
) -> tuple[MergeConfig, Results]:
    """Return the config that gains most within the target, and the results of all that were tried.

    Along each method's candidates the strongest one within the target is found by bisection, which takes for granted
    that a stronger merge costs more. They, and for the speed-up also the milder ones that were found to be within the
    target, are then timed, interleaved with the unmerged model, on one batch, and the best by the criterion wins; the
    others have no speed, since they ran at different times. A note says so where it is no faster than unmerged.

    Args:
        job: the model, its data and how the two meet.
        methods: merging methods.
        target: what merging may cost; one point of accuracy by default.
        out: folder for each sample's results; the same call resumes a run that was killed.
        by: the criterion, `"speedup"` or `"gflops"`.
        where: the place where tokens merge, as in `MergeConfig`.
        batch_size: samples in a batch.
        on_progress: given a config's name, returns what `evaluate` reports progress to.

    Raises:
        TuneError: no config is within the target.
        ValueError: an unknown method or criterion, GFLOPs that are not known, or what `evaluate` raises.
    """
    if by not in CRITERIA:
        raise ValueError(f"Unknown criterion {by!r}; known are {', '.join(CRITERIA)}.")
    if by == "gflops" and where == PROJECTED:
        raise ValueError(
            "GFLOPs are those of the tower, which merging projected tokens leaves as they are; tune by the speed-up."
        )
    with plain_model(job.model) as notes:
        config, results = _tune(job, methods, target or Target(), out, by, where, batch_size, on_progress)
    results.run["notes"] = [*results.run["notes"], *notes]
    return config, results


def _tune(
    job: Job,
    methods: Sequence[str],
    target: Target,
    out: Path,
    by: str,
    where: str,
    batch_size: int,
    on_progress: Callable[[str], Progress] | None,
) -> tuple[MergeConfig, Results]:
    lines = [candidates(job, method, where) for method in methods]  # an unknown method is found before any runs
    if by == "gflops" and _first_report(job, MergeConfig(where=where)).gflops is None:
        raise ValueError(f"The GFLOPs of {job.model_name} are not known; tune by the measured speed-up.")
    _check_samples(evaluate(job, [], batch_size=batch_size, out=out, speedups=False), target)
    tried: list[MergeConfig] = []
    within: dict[str, list[MergeConfig]] = {}

    def is_met(config: MergeConfig) -> bool:
        tried.append(config)
        update = on_progress(format_config(config)) if on_progress else None
        results = evaluate(job, [config], batch_size=batch_size, on_progress=update, out=out, speedups=False)
        unmerged, row = results.rows
        if target.met(row, unmerged):
            within.setdefault(config.method, []).append(config)  # bisection moves on to stronger ones
            return True
        return False

    for line in lines:
        _bisect(line, is_met)
    results = evaluate(job, tried, batch_size=batch_size, out=out)  # all are done; this puts them in one table
    compared = [
        candidate for allowed in within.values() for candidate in (allowed if by == "speedup" else allowed[-1:])
    ]
    _time(job, compared, results, batch_size)
    if not compared:
        message = _explain(results.rows[1:], results.rows[0], target)
        results.run["notes"] = [message, *results.run.get("notes", ())]
        raise TuneError(message, results)
    rows = {row["name"]: row for row in results.rows}
    chosen = max(compared, key=lambda config: _gain(rows[format_config(config)], by))
    note = _summarize(rows[format_config(chosen)], by, len(compared))
    results.run["notes"] = [note, *results.run.get("notes", ())]
    return chosen, results


def samples_needed(max_drop: float) -> int:
    """Return how many samples an interval needs to be within `max_drop` points where merging changes none of them.

    With fewer no config can be shown to meet the target (see `bootstrap.unchanged_bound`).
    """
    return next((n for n in SAMPLE_COUNTS if unchanged_bound(n) <= max_drop), SAMPLE_COUNTS[-1])


def _check_samples(results: Results, target: Target) -> None:
    """Raise where no config could be shown to meet the target, whatever it does."""
    count = results.data["num_samples"]
    if not target.sure or quality(results.rows[0]).key not in HITS or unchanged_bound(count) <= target.max_drop:
        return
    if not target.max_drop:
        raise ValueError("No number of samples makes sure of a drop of 0 points; allow more, or pass --not-sure.")
    raise ValueError(
        f"{count} samples are too few to be sure of a drop of at most {target.max_drop:g} points: even where merging "
        f"changes no answer, the 95 % interval reaches {unchanged_bound(count):.2f} points. It takes at least "
        f"{samples_needed(target.max_drop)} samples; evaluate more, allow more, or pass --not-sure, by which the "
        "measured drop alone counts."
    )


def _gain(row: Mapping[str, Any], by: str) -> float:
    return row["speedup"] if by == "speedup" else -row["gflops"]


def _summarize(row: Mapping[str, Any], by: str, compared: int) -> str:
    """Return the note on the chosen config: what it was chosen by, and if so that it is no faster than unmerged."""
    chosen = f"chosen by {CRITERIA[by]} among the {compared} within the target that were compared: {row['name']}"
    if row["speedup"] > 1:
        return chosen
    slower = f"it runs {row['speedup']:.2f} times as fast as the unmerged model on this machine, so it is no faster"
    return f"{chosen}; {slower}" + (", and neither is any of the others" if by == "speedup" and compared > 1 else "")


@torch.inference_mode()
def _time(job: Job, configs: Sequence[MergeConfig], results: Results, batch_size: int) -> None:
    """Give the unmerged row and those of some configs the speed of interleaved runs, and the others none."""
    rounds: dict[int, dict[str, float]] = {}
    batch = first_batch(job, batch_size)
    if configs:
        models = {UNMERGED: job.model}
        models |= {format_config(config): apply(shallow_copy(job.model), config) for config in configs}
        runs = {name: partial(job.run, model, batch.inputs) for name, model in models.items()}
        seconds = interleave(runs, ROUNDS, device=job.model.device)
        rounds = {
            number: {name: values[number] / len(batch.samples) for name, values in seconds.items()}
            for number in range(ROUNDS)
        }
    for row in results.rows:
        row.update(speed(rounds, row["name"]))
    load = [line for line in results.run.get("warnings", ()) if line.startswith("the load")]
    results.run["warnings"] = [*load, *doubtful_speeds(results.rows)]


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
def _first_report(job: Job, config: MergeConfig) -> Report:
    """Return the report of the model on one sample."""
    batch = first_batch(job, 1)
    apply(job.model, config)
    try:
        job.run(job.model, batch.inputs)
        return report(job.model)
    finally:
        remove(job.model)


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

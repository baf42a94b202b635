"""The rows of the table, from the runs that have ended."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from common import Row

from hf_tome import MergeConfig, apply
from hf_tome.inspection.flops import gflops

from .data import Images
from .models import CONFIGS, build
from .records import stored, stored_record, weights_path
from .runs import BATCH_SIZE, CONTROL, HALF, STRONG, WAYS, Run
from .speed import measure_step, measure_swins
from .train import accuracy

Accuracies = dict[int, float]
"""Seed -> test accuracy in percent."""

LEAST_LOSS = 1.0
"""Points of accuracy below which there is nothing to win back."""


@dataclass(frozen=True)
class Work:
    """What has been run, and on what.

    Attributes:
        folder: with records and weights.
        images: to train and test on.
        runs: by name, all but those at equal time.
        seeds: which seeds count.
        rounds: of the timing of a step.
    """

    folder: Path
    images: Images
    runs: dict[str, Run]
    seeds: Sequence[int]
    rounds: int

    def accuracies(self, run: Run) -> Accuracies:
        """Return the test accuracy of each seed of a run that has ended."""
        records = {seed: stored_record(run, seed, self.images, self.folder) for seed in self.seeds}
        return {seed: record["accuracy"] for seed, record in records.items() if record is not None}

    def off_the_shelf(self, name: str, config: MergeConfig, seeds: Sequence[int]) -> Accuracies:
        """Return the accuracy of the unmerged models with their tokens merged."""
        return {seed: self._off_the_shelf(name, config, seed) for seed in seeds}

    def _off_the_shelf(self, name: str, config: MergeConfig, seed: int) -> float:
        unmerged = self.runs["unmerged"]

        def measure() -> Row:
            model = build(unmerged.model, seed)
            model.load_state_dict(torch.load(weights_path(self.folder, unmerged.name, seed), weights_only=True))
            return {"accuracy": accuracy(apply(model, config), self.images)}

        settings = {"config": config.to_dict(), "start": unmerged.describe(), "seed": seed}
        return stored(self.folder / f"{name}-shelf-{seed}.json", settings, measure)["accuracy"]

    def speed(self, name: str) -> Row:
        """Return the speed of a training step that merges, beside the unmerged one and the slice oracle."""
        config, images = self.runs[name].config, self.images.train_images[:BATCH_SIZE]
        settings = {"config": config.to_dict(), "rounds": self.rounds, "batch_size": BATCH_SIZE}
        measure = partial(measure_step, config, images, self.rounds)
        return stored(self.folder / f"speed-{name}.json", settings, measure)

    def equal_time(self) -> Run:
        """Return the unmerged run that takes no less time than the slowest of the merged ones."""
        speedup = min(self.speed(name)["speedup"] for name in HALF)
        return self.runs["unmerged"].shorter("unmerged-equal-time", max(speedup, 1.0))

    @property
    def steps_per_epoch(self) -> int:
        """The steps of an epoch."""
        return self.images.steps_per_epoch(BATCH_SIZE)


def make_rows(work: Work) -> list[Row]:
    """Return a row for each run that has ended, and for merging off the shelf."""
    unmerged = work.accuracies(work.runs["unmerged"])
    rows = []
    if unmerged:
        rows += scratch_rows(work, unmerged)
        trained_on = work.accuracies(work.runs["unmerged-tuned"])
        if trained_on:
            row = accuracy_row("unmerged", "trained on", work.runs["unmerged-tuned"].epochs, trained_on)
            row["points"] = mean_difference(trained_on, unmerged)
            rows.append(row | {"mflops": rows[0]["mflops"]})
        for name, config in {**HALF, **STRONG}.items():
            rows += tuned_rows(work, name, config, unmerged, trained_on)
    return [*rows, *swin_rows(work)]


def scratch_rows(work: Work, unmerged: Accuracies) -> list[Row]:
    """Return the rows of models trained from scratch."""
    epochs = work.runs["unmerged"].epochs
    rows = [accuracy_row("unmerged", "from scratch", epochs, unmerged)]
    rows[0]["mflops"] = 1e3 * gflops(CONFIGS["vit"])
    shorter = work.equal_time()
    at_equal_time = work.accuracies(shorter)
    for name, config in {**HALF, **CONTROL}.items():
        accuracies = work.accuracies(work.runs[name])
        if not accuracies:
            continue
        speed = work.speed(name)
        row = accuracy_row(name, "from scratch", epochs, accuracies) | {"mflops": mflops(config)}
        row["points"] = mean_difference(accuracies, unmerged)
        for key, variant in (("seconds", "merged"), ("seconds_unmerged", "unmerged")):
            row[key] = speed["seconds_per_step"][variant] * work.steps_per_epoch
        row |= {key: speed[key] for key in ("speedup", "oracle_speedup", "oracle_share")}
        row |= {"peak_mib": speed["peak_mib"]["merged"], "oracle_mib": speed["peak_mib"]["oracle"]}
        rows[0] = {"seconds": row["seconds_unmerged"], "peak_mib": speed["peak_mib"]["unmerged"], **rows[0]}
        rows.append(row)
        if at_equal_time:
            row["points_at_equal_time"] = mean_difference(accuracies, at_equal_time)
    if at_equal_time:
        row = accuracy_row("unmerged", "from scratch, as long as merged", shorter.epochs, at_equal_time)
        rows.insert(1, row | {"mflops": rows[0]["mflops"]})
    return rows


def tuned_rows(work: Work, name: str, config: MergeConfig, unmerged: Accuracies, trained_on: Accuracies) -> list[Row]:
    """Return the rows of the unmerged model that learns to merge, from off the shelf on."""
    shelf = work.off_the_shelf(name, config, list(unmerged))
    rows = [accuracy_row(name, "off the shelf", 0.0, shelf) | {"mflops": mflops(config)}]
    rows[0]["points"] = mean_difference(shelf, unmerged)
    for way, training in WAYS.items():
        run = work.runs[f"{name}-{way}"]
        accuracies = work.accuracies(run)
        if not accuracies:
            continue
        row = accuracy_row(name, training, run.epochs, accuracies) | {"mflops": mflops(config)}
        row["points"] = mean_difference(accuracies, unmerged)
        row["won_back"] = won_back(accuracies, shelf, unmerged)
        row["won_back_of_trained_on"] = won_back(accuracies, shelf, trained_on)
        rows.append(row)
    return rows


def swin_rows(work: Work) -> list[Row]:
    """Return the rows of Swin and MaMe-Swin."""
    measured = {name: work.accuracies(work.runs[name]) for name in ("swin", "mame-swin")}
    if not all(measured.values()):
        return []
    settings = {"rounds": work.rounds, "batch_size": BATCH_SIZE}
    images = work.images.train_images[:BATCH_SIZE]
    speed = stored(work.folder / "speed-swin.json", settings, partial(measure_swins, images, work.rounds))
    rows = []
    for name, accuracies in measured.items():
        run = work.runs[name]
        row = accuracy_row(name, "from scratch", run.epochs, accuracies)
        row |= {"mflops": 1e3 * speed["gflops"][run.model], "peak_mib": speed["peak_mib"][run.model]}
        row |= {"seconds": speed["seconds_per_step"][run.model] * work.steps_per_epoch}
        rows.append(row | {"parameters": speed["parameters"][run.model]})
    rows[1]["points_to_swin"] = mean_difference(measured["mame-swin"], measured["swin"])
    return rows


def mflops(config: MergeConfig) -> float:
    """Return the multiply-adds of an image through the ViT, in millions."""
    return 1e3 * gflops(CONFIGS["vit"], config)


def accuracy_row(model: str, training: str, epochs: float, accuracies: Accuracies) -> Row:
    """Return a row with the mean of the seeds' accuracies and how far they spread."""
    values = list(accuracies.values())
    deviation = statistics.stdev(values) if len(values) > 1 else None
    row: Row = {"model": model, "training": training, "epochs": epochs, "accuracy": statistics.fmean(values)}
    return row | {"deviation": deviation, "accuracies": accuracies, "seeds": len(values)}


def mean_difference(accuracies: Accuracies, others: Accuracies) -> float | None:
    """Return by how many points the first are above the others, over the seeds that both have."""
    common = accuracies.keys() & others.keys()
    return statistics.fmean(accuracies[seed] - others[seed] for seed in common) if common else None


def won_back(accuracies: Accuracies, shelf: Accuracies, target: Accuracies) -> float | None:
    """Return which share of what merging off the shelf costs is won back, of the means over the same seeds.

    `None` where it costs nothing to speak of.
    """
    common = accuracies.keys() & target.keys()
    if not common:
        return None
    lost = statistics.fmean(target[seed] - shelf[seed] for seed in common)
    gained = statistics.fmean(accuracies[seed] - shelf[seed] for seed in common)
    return gained / lost if lost >= LEAST_LOSS else None

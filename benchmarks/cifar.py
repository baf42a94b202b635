"""Training with merging on real pictures: small ViTs of 256 tokens on CIFAR-10, and MaMe-Swin beside Swin.

From scratch: AdamW, batches of 50, flips alone, a constant learning rate and the average of the weights, so that one
run is evaluated both after as many epochs as the unmerged model and after as much processor time, by the speed-up of a
step that is measured before. Then the unmerged model merged off the shelf, fine-tuned with merging, in its last block
alone, and distilled from itself unmerged; and, for comparison, trained on unmerged. FLOPs are multiply-adds.

Every run leaves a record and its weights in the folder `--work`, and is resumed where it was cut off.

    python benchmarks/cifar.py --data FOLDER --work FOLDER [--runs NAME ...] [--out benchmarks/measured/cifar.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cifar_runs.data import Pictures
from cifar_runs.models import build
from cifar_runs.speed import measure_step, measure_swins
from cifar_runs.train import BATCH_SIZE, Run, accuracy, stored_record, train, weights_path
from common import SHARED_DATA, Row, run

from hf_tome import MergeConfig, apply
from hf_tome.files import write_whole

MERGING = {
    "tome": MergeConfig(r=60),
    "mame": MergeConfig(method="mame", threshold=0.5, keep_ratio=0.5, layers=[0, 2]),
}
WAYS = {"tuned": "fine-tuned", "last-block": "last block alone", "distilled": "distilled"}
COLUMNS = {
    "model": "model",
    "training": "training",
    "epochs": "epochs",
    "mflops": "MFLOPs",
    "accuracy": "accuracy, %",
    "deviation": "deviation",
    "seeds": "seeds",
    "equal_time": "at equal time, %",
    "won_back": "won back",
    "won_back_of_trained_on": "won back, of trained on",
    "seconds": "s an epoch",
    "speedup": "speed-up",
    "oracle_share": "share of the oracle",
    "peak_mib": "peak MiB",
}
LEAST_LOSS = 0.5
"""Points of accuracy below which there is nothing to win back."""
SCRATCH_EPOCHS, TUNE_EPOCHS, SWIN_EPOCHS = 1.5, 0.25, 1.0


def list_runs(share: float = 1.0) -> list[Run]:
    """Return all training runs, in their order; `share` of the epochs."""
    scratch, tuned, swin = (epochs * share for epochs in (SCRATCH_EPOCHS, TUNE_EPOCHS, SWIN_EPOCHS))
    tune = {"epochs": tuned, "start": "unmerged", "learning_rate": 5e-4}
    rows = [Run("unmerged", epochs=scratch)]
    rows += [Run(name, config=config, epochs=scratch) for name, config in MERGING.items()]
    rows += [Run("unmerged-tuned", **tune)]
    for name, config in MERGING.items():
        rows += [
            Run(f"{name}-tuned", config=config, **tune),
            Run(f"{name}-last-block", config=config, last_block=True, **tune),
            Run(f"{name}-distilled", config=config, distils=True, **tune),
        ]
    return [*rows, Run("swin", "swin", epochs=swin), Run("mame-swin", "mame_swin", epochs=swin)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark takes besides."""
    parser.add_argument(
        "--data", type=Path, default=SHARED_DATA / "cifar10_sample", help="train*.parquet, test*.parquet"
    )
    parser.add_argument("--work", type=Path, help="where records and checkpoints are; by default a temporary folder")
    parser.add_argument("--runs", nargs="+", help="only these")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of what has been run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7, help="of the timing of a step")


def measure(options: argparse.Namespace) -> list[Row]:
    """Train what has not been trained yet, and return the table."""
    if options.quick:
        options.seeds, options.rounds = 1, 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = Pictures.random() if options.quick else Pictures.load(options.data)
        runs = list_runs(0.5 if options.quick else 1.0)
        names = [entry.name for entry in runs]
        unknown = set(options.runs or ()) - set(names)
        if unknown:
            raise SystemExit(f"Unknown --runs {', '.join(sorted(unknown))}; known are {', '.join(names)}.")
        images = pictures.train_images[:BATCH_SIZE]
        for entry in runs:
            if options.table or (options.runs and entry.name not in options.runs):
                continue
            longer = 1.0
            if entry.from_scratch and entry.name in MERGING:
                longer = stored(
                    folder, f"speed-{entry.name}", partial(measure_step, entry.config, images, options.rounds)
                )["speedup"]
            for seed in range(options.seeds):
                train(entry, seed, pictures, folder, max(longer, 1.0))
        return table(runs, pictures, folder, options)


def stored(folder: Path, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured before under this name, or measure it and keep it."""
    path = folder / f"{name}.json"
    if not path.is_file():
        write_whole(path, json.dumps(measure(), indent=1) + "\n")
    return json.loads(path.read_text())


def table(runs: list[Run], pictures: Pictures, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Return a row for each run that has ended, and for merging off the shelf."""
    records = {
        entry.name: [record for seed in range(options.seeds) if (record := stored_record(folder, entry.name, seed))]
        for entry in runs
    }
    rows = [scratch_row(name, records[name], folder) for name in ("unmerged", *MERGING) if records[name]]
    if records["unmerged"]:
        rows += [row for name in MERGING for row in tuned_rows(name, records, pictures, folder)]
    images = pictures.train_images[:BATCH_SIZE]
    if records["swin"] and records["mame-swin"]:
        speed = stored(folder, "speed-swin", lambda: measure_swins(images, options.rounds))
        rows += [swin_row(name, records[name], speed) for name in ("swin", "mame-swin")]
    return rows


def scratch_row(name: str, records: list[dict[str, Any]], folder: Path) -> Row:
    """Return the row of models trained from scratch."""
    speed = read(folder / f"speed-{name}.json") or read(folder / f"speed-{next(iter(MERGING))}.json")
    variant = "merged" if name in MERGING else "unmerged"
    row: Row = {"model": name, "training": "from scratch", "epochs": records[0]["epochs"]}
    row |= spread_of([record["accuracy"] for record in records])
    if name in MERGING:
        row["equal_time_epochs"] = records[0]["epochs_at_equal_time"]
        row["equal_time"] = mean([record["accuracy_at_equal_time"] for record in records])
        row["equal_time_accuracies"] = [record["accuracy_at_equal_time"] for record in records]
    if speed:
        steps = records[0]["settings"]["images"] // BATCH_SIZE
        row["seconds"] = speed["seconds_per_step"][variant] * steps
        row["mflops"] = 1e3 * speed["gflops" if name in MERGING else "gflops_unmerged"]
        row["peak_mib"] = speed["peak_mib"][variant]
        if name in MERGING:
            row |= {key: speed[key] for key in ("speedup", "oracle_speedup", "oracle_share")}
            row["oracle_mib"] = speed["peak_mib"]["oracle"]
    return row


def tuned_rows(name: str, records: dict[str, list[dict[str, Any]]], pictures: Pictures, folder: Path) -> list[Row]:
    """Return the rows of the unmerged model that learns to merge, from off the shelf on."""
    seeds = [record["settings"]["seed"] for record in records["unmerged"]]
    shelf = [
        stored(folder, f"{name}-shelf-{seed}", lambda seed=seed: off_the_shelf(name, seed, pictures, folder))[
            "accuracy"
        ]
        for seed in seeds
    ]
    unmerged = [record["accuracy"] for record in records["unmerged"]]
    rows = [{"model": name, "training": "off the shelf", "epochs": 0.0, **spread_of(shelf)}]
    trained_on = records["unmerged-tuned"]
    for way in ("tuned", "last-block", "distilled"):
        tuned = records[f"{name}-{way}"]
        if not tuned:
            continue
        values = [record["accuracy"] for record in tuned]
        row = {"model": name, "training": WAYS[way], "epochs": tuned[0]["epochs"], **spread_of(values)}
        row["won_back"] = won_back(values, shelf, unmerged)
        if len(trained_on) == len(values):
            row["won_back_of_trained_on"] = won_back(values, shelf, [record["accuracy"] for record in trained_on])
        rows.append(row)
    if name == next(iter(MERGING)) and trained_on:
        values = [record["accuracy"] for record in trained_on]
        rows.insert(
            0, {"model": "unmerged", "training": "trained on", "epochs": trained_on[0]["epochs"], **spread_of(values)}
        )
    return rows


def off_the_shelf(name: str, seed: int, pictures: Pictures, folder: Path) -> dict[str, float]:
    """Return the accuracy of the unmerged model with its tokens merged."""
    model = build("vit", seed)
    model.load_state_dict(torch.load(weights_path(folder, "unmerged", seed), weights_only=True))
    return {"accuracy": accuracy(apply(model, MERGING[name]), pictures)}


def swin_row(name: str, records: list[dict[str, Any]], speed: dict[str, Any]) -> Row:
    """Return the row of Swin or MaMe-Swin."""
    key = records[0]["settings"]["model"]
    return {
        "model": name,
        "training": "from scratch",
        "epochs": records[0]["epochs"],
        **spread_of([record["accuracy"] for record in records]),
        "seconds": speed["seconds_per_step"][key] * (records[0]["settings"]["images"] // BATCH_SIZE),
        "mflops": 1e3 * speed["gflops"][key],
        "peak_mib": speed["peak_mib"][key],
        "parameters": speed["parameters"][key],
    }


def spread_of(accuracies: list[float]) -> Row:
    """Return the mean of the seeds' accuracies and how far they spread."""
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return {"accuracy": mean(accuracies), "deviation": deviation, "accuracies": accuracies, "seeds": len(accuracies)}


def won_back(values: list[float], shelf: list[float], whole: list[float]) -> float | None:
    """Return which share of what merging off the shelf costs is won back, of the means over the same seeds.

    `None` where it costs nothing to speak of.
    """
    lost = mean(whole[: len(values)]) - mean(shelf[: len(values)])
    return (mean(values) - mean(shelf[: len(values)])) / lost if lost >= LEAST_LOSS else None


def mean(values: list[float]) -> float:
    """Return the mean."""
    return statistics.fmean(values)


def read(path: Path) -> dict[str, Any] | None:
    """Return a record, or `None` where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="epochs at least 1.6 times as fast from scratch",
        reached=lambda row: row["speedup"] >= 1.6 if "speedup" in row else None,
        add_options=add_options,
    )

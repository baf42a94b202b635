"""Training with merging on small images: ViTs of 256 tokens on CIFAR-10, and MaMe-Swin beside Swin.

From scratch: AdamW, small batches, flips alone, a learning rate that is constant and then falls to zero. The unmerged
model is trained for as many epochs as the merged ones, and for as long as the slower of them, by the speed-up of a
step that is measured before. Then the unmerged model merged off the shelf, fine-tuned with merging, in its last block
alone, and distilled from itself unmerged; and, for comparison, trained on unmerged. FLOPs are multiply-adds.

Every run leaves a record and its weights in the folder `--work`, and is resumed where it was cut off. With `--choose`
candidates are compared on training images that are held out, with a seed of their own.

    python benchmarks/cifar.py --data FOLDER --work FOLDER [--runs NAME ...] [--out benchmarks/measured/cifar.json]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cifar_runs.data import Images
from cifar_runs.runs import list_candidates, list_runs
from cifar_runs.table import Work, accuracy_row, make_rows
from cifar_runs.train import train
from common import SHARED_DATA, Row, run

COLUMNS = {
    "model": "model",
    "training": "training",
    "epochs": "epochs",
    "mflops": "MFLOPs",
    "accuracy": "accuracy, %",
    "deviation": "deviation",
    "seeds": "seeds",
    "points": "points above unmerged",
    "points_at_equal_time": "at equal time",
    "won_back": "won back",
    "won_back_of_trained_on": "won back, of trained on",
    "seconds": "s an epoch",
    "speedup": "speed-up",
    "oracle_share": "share of the oracle",
    "peak_mib": "peak MiB",
}
HELD_OUT, CHOICE_SEEDS = 2500, (100,)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark takes besides."""
    parser.add_argument(
        "--data", type=Path, default=SHARED_DATA / "cifar10_sample", help="train*.parquet, test*.parquet"
    )
    parser.add_argument("--work", type=Path, help="where records and checkpoints are; by default a temporary folder")
    parser.add_argument("--runs", nargs="+", help="only these")
    parser.add_argument("--table", action="store_true", help="run nothing: the table of what has been run")
    parser.add_argument("--choose", action="store_true", help="candidates, on training images that are held out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=31, help="of the timing of a step")


def measure(options: argparse.Namespace) -> list[Row]:
    """Train what has not been trained yet, and return the table."""
    if options.quick:
        options.seeds, options.rounds = [0], 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        images = Images.random() if options.quick else Images.load(options.data)
        if options.choose:
            return choose(options, images.hold_out(HELD_OUT), folder)
        runs = {entry.name: entry for entry in list_runs(0.5 if options.quick else 1.0)}
        work = Work(folder, images, runs, options.seeds, options.rounds)
        if not options.table:
            run_all(work, selected(options.runs, list(runs)))
        return make_rows(work)


def run_all(work: Work, names: list[str]) -> None:
    """Train what has not been trained yet: all runs of a seed, then those of the next."""
    for seed in work.seeds:
        for name in names:
            shorter = [work.equal_time()] if name == "unmerged" else []
            train(work.runs[name], seed, work.images, work.folder, shorter)
            for entry in shorter:
                train(entry, seed, work.images, work.folder)


def choose(options: argparse.Namespace, images: Images, folder: Path) -> list[Row]:
    """Train the candidates, and return a row for each."""
    runs = {entry.name: entry for entry in list_candidates()}
    work = Work(folder, images, runs, CHOICE_SEEDS, options.rounds)
    rows = []
    for name in selected(options.runs, list(runs)):
        for seed in () if options.table else CHOICE_SEEDS:
            train(runs[name], seed, images, folder)
        accuracies = work.accuracies(runs[name])
        if accuracies:
            rows.append(accuracy_row(name, "from scratch", runs[name].epochs, accuracies))
    return rows


def selected(names: list[str] | None, known: list[str]) -> list[str]:
    """Return the runs that were asked for.

    Raises:
        SystemExit: one is unknown.
    """
    unknown = set(names or ()) - set(known)
    if unknown:
        raise SystemExit(f"Unknown --runs {', '.join(sorted(unknown))}; known are {', '.join(known)}.")
    return names or known


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="epochs at least 1.6 times as fast from scratch",
        reached=lambda row: row["speedup"] >= 1.6 if "speedup" in row else None,
        add_options=add_options,
    )

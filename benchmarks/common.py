"""What the benchmarks share: options, one thread, the environment, and results as JSON and as a Markdown table.

A benchmark is a function that returns rows. `run` gives it `--quick` and `--out`, prints the table, and writes JSON
from which `docs/performance.md` is made (`python scripts/performance_page.py`).
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from hf_tome import MergeConfig
from hf_tome.config.text import format_config
from hf_tome.evaluation.environment import describe_environment
from hf_tome.evaluation.reporting.writers import markdown_table
from hf_tome.files import write_whole
from hf_tome.profiling.benchmark import Benchmark, benchmark
from hf_tome.profiling.example_inputs import example_inputs

CaseT = TypeVar("CaseT")
Row = dict[str, Any]
Columns = Mapping[str, str]
"""Key of a row -> header; the values tell how they are printed (see `show`)."""

PATHS = ("--out", "--work")
MEASURED = Path(__file__).resolve().parent / "measured"
SHARED_DATA = Path(os.environ.get("HF_TOME_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def run(
    doc: str,
    measure: Callable[[Any], Sequence[Row]],
    columns: Columns,
    *,
    target: str,
    reached: Callable[[Row], bool | None] = lambda row: None,
    device: str | Callable[[argparse.Namespace], str] = "cpu",
    add_options: Callable[[argparse.ArgumentParser], object] | None = None,
) -> None:
    """Measure, print a Markdown table, and write JSON if `--out` is given.

    Args:
        doc: the script's docstring, whose first line is the title.
        measure: called with `--quick`, or with all options where there are more; returns the rows.
        columns: what is printed.
        target: what is to be reached, in words.
        reached: whether a row reaches it; `None` where the target says nothing about it.
        device: what it runs on; may depend on the options.
        add_options: adds options to the parser.
    """
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer runs: to see that it works")
    parser.add_argument(
        "--out", type=Path, help="JSON file to write; the page is made from benchmarks/measured/*.json"
    )
    if add_options is not None:
        add_options(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    measured = measure(options if add_options is not None else options.quick)
    rows = [{**plain(row), "reached": reached(row)} for row in measured]
    result = {
        "benchmark": name,
        "title": doc.strip().splitlines()[0],
        "about": " ".join(doc.strip().split("\n\n")[1].split()) if "\n\n" in doc else "",
        "command": shlex.join(["python", f"benchmarks/{name}.py", *_given(sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
        "environment": describe_environment(device if isinstance(device, str) else device(options)),
        "target": target,
        "columns": dict(columns),
        "rows": rows,
    }
    print(markdown(result))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.out, json.dumps(result, indent=1) + "\n")


TOWER_COLUMNS = {
    "config": "config",
    "tokens": "tokens",
    "tokens_left": "left",
    "unmerged_s": "unmerged s",
    "speedup": "speed-up",
    "oracle_speedup": "oracle",
    "oracle_share": "share of the oracle",
}
"""The columns of `tower_row`."""


def time_tower(model: Any, inputs: Mapping[str, Any], config: MergeConfig, rounds: int) -> Benchmark:
    """Time a tower of one picture beside the slice oracle, in processor time."""
    return benchmark(model, inputs, config, rounds=rounds, warmup=1, clock="process", memory=False)


def encoder_row(name: str, model: Any, r: int, batch_size: int, rounds: int) -> Row:
    """Time a whole encoder with ToMe beside the slice oracle, in processor time, and return the row of it."""
    inputs = example_inputs(model, batch_size)
    result = benchmark(model, inputs, MergeConfig(r=r), rounds=rounds, clock="process", memory=False)
    return {"model": name, "r": r, "batch_size": batch_size, "rounds": rounds, **speeds(result)}


def tower_row(config: MergeConfig, result: Benchmark) -> Row:
    """Return what `time_tower` says of a config."""
    tokens, tokens_left = result.tokens
    return {"config": format_config(config), "tokens": tokens, "tokens_left": tokens_left, **speeds(result)}


def speeds(result: Benchmark) -> Row:
    """Return what a benchmark of a whole model says of speed, by column."""
    return {
        "unmerged_s": result.seconds["unmerged"].median,
        "speedup": result.speedup,
        "oracle_speedup": result.oracle_speedup,
        "oracle_share": result.oracle_share,
    }


def _given(arguments: Sequence[str]) -> list[str]:
    """Return the command line without the paths of what is written."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith(PATHS):
            kept.append(argument)
        skip = argument in PATHS
    return kept


def add_gpu_options(parser: argparse.ArgumentParser) -> None:
    """Add what benchmarks of a GPU take besides; their cases run through `measure_cases`."""
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu")
    parser.add_argument("--minutes", type=float, default=8, help="cases that do not begin by then are not run")


def check_gpu(device: str) -> None:
    """Exit where `device` is a GPU that torch does not see."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"{sys.argv[0]} needs a GPU that torch sees; `--quick --device cpu` shows that it works.")


def measure_cases(
    options: argparse.Namespace, cases: Iterable[CaseT], measure_case: Callable[[CaseT, bool, str], Row]
) -> list[Row]:
    """Return what is measured of each case; of one that fails, or for which there is no time, why."""
    check_gpu(options.device)
    measured: list[Row] = []
    stop = time.monotonic() + 60 * options.minutes
    for case in cases:
        if time.monotonic() > stop:
            row: Row = {"why": f"not run: the {options.minutes:g} minutes are over"}
        else:
            try:
                row = measure_case(case, options.quick, options.device)
            except Exception as error:  # e.g. flash attention is not installed, or out of memory
                row = {"why": " ".join(f"{type(error).__name__}: {error}".split())[:160]}
        measured.append(row)
        print(case, row, file=sys.stderr, flush=True)
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return measured


def plain(row: Row) -> Row:
    """Return the row as JSON values."""
    return {key: asdict(value) if is_dataclass(value) else value for key, value in row.items()}  # type: ignore[arg-type]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the rows of a result as a Markdown table."""
    columns = {**result["columns"], "reached": "reached"}
    if all(row["reached"] is None for row in result["rows"]):
        del columns["reached"]
    rows = ([show(row.get(key)) for key in columns] for row in result["rows"])
    return markdown_table(list(columns.values()), rows).rstrip()


def show(value: Any) -> str:
    """Return a value as a cell's text: four digits of a number, a spread as its median and quartiles."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, Mapping):
        return f"{value['median']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def keep_memory() -> None:
    """Let glibc keep the memory that is freed: else every large tensor is mapped anew, and page faults are timed."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of <malloc.h>
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)

"""Tables inside hand-written pages that follow from measurements: between `<!-- generated: NAME -->` and its end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_tome.config.text import short_name
from hf_tome.evaluation.reporting.tables import to_markdown
from hf_tome.evaluation.store.results import Results
from hf_tome.merging.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
SWEEP = ROOT / "benchmarks" / "measured" / "sweep_deit_tiny.json"
SWEEP_DATE = "2026-11-21"
SWEEP_COMMAND = (
    "hf-tome sweep --model facebook/deit-tiny-patch16-224 --data PHOTOGRAPHS --split validation --r 4,8,13,16 "
    "--threshold 0.9,0.8,0.7 --out sweep/"
)
MARKED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read_sweep() -> Results:
    """Return what the sweep of DeiT-Tiny gave, as `hf-tome sweep` wrote it to results.json."""
    return Results(**json.loads(SWEEP.read_text(encoding="utf-8")))


def sweep() -> str:
    """Return all rows of the sweep, with what it was measured on."""
    results = read_sweep()
    return f"{to_markdown(results)}\n{_measured(results)}\n"


def sweep_merging() -> str:
    """Return the rows of the sweep that merge, without the controls, in few columns."""
    results = read_sweep()
    header = "| | top-1 % | same class as unmerged % | tokens left | GFLOPs (MACs) | speed-up |"
    lines = [header, "|---|---:|---:|---:|---:|---:|"]
    lines += [_short_row(row) for row in results.rows if "control" not in row]
    return "\n".join([*lines, "", _measured(results)]) + "\n"


def _short_row(row: dict[str, Any]) -> str:
    method = row["config"]["method"]
    search = "" if METHODS[method].takes_r else f"{METHODS[method].search_field} "
    label = f"{METHODS[method].label}, {search}" + short_name(row["name"]).removeprefix(f"{method} ")
    name = row["name"] if row["name"] == "unmerged" else label
    values = (f"{row['top1']:.1f}", f"{row['agreement']:.1f}", f"{row['tokens']:.0f}", f"{row['gflops']:.2f}")
    return f"| {name} | {' | '.join(values)} | {row['speedup']:.2f} |"


def _measured(results: Results) -> str:
    environment, packages = results.environment, results.environment["packages"]
    return (
        f"DeiT-Tiny on {results.data['num_samples']:,} ImageNet photographs, one a class, from "
        "EliSchwartz/imagenet-sample-images on GitHub (not the validation split: compare with the unmerged row, not "
        f"published figures). `{SWEEP_COMMAND}`; {results.run['dtype']}, "
        f"{results.run['attention']}, batches of {results.run['batch_size']}, {environment['device_name']}, "
        f"{environment['threads']} threads, torch {packages['torch']}, transformers {packages['transformers']}, "
        f"{SWEEP_DATE}. Speed by the wall clock, of one run."
    )


SECTIONS: dict[str, Callable[[], str]] = {"sweep": sweep, "sweep_merging": sweep_merging}


def fill(text: str) -> str:
    """Return a page with each marked section written anew.

    Raises:
        KeyError: a section of an unknown name.
    """
    return MARKED.sub(lambda found: f"{found[1]}{SECTIONS[found[2]]()}{found[3]}", text)

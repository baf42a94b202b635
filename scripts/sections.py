"""Tables inside hand-written pages that follow from measurements: between `<!-- generated: NAME -->` and its end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from common import markdown
from composition import table as composition

from hf_tome.config.text import short_name
from hf_tome.evaluation.reporting.tables import to_markdown
from hf_tome.evaluation.reporting.writers import markdown_table
from hf_tome.evaluation.search.budget.paired import break_even
from hf_tome.evaluation.store.results import Results
from hf_tome.merging.methods import METHODS

MEASURED = Path(__file__).resolve().parent.parent / "benchmarks" / "measured"
Result = dict[str, Any]
"""What a benchmark wrote (see `benchmarks/common.py`)."""
SWEEP = MEASURED / "sweep_deit_tiny.json"
SWEEP_DATE = "2026-11-21"
SWEEP_COMMAND = (
    "hf-tome sweep --model facebook/deit-tiny-patch16-224 --data PHOTOGRAPHS --split validation --r 4,8,13,16 "
    "--threshold 0.9,0.8,0.7 --out sweep/"
)
DOWNSAMPLED = {"r=8": 192, "r=13": 176, "r=16": 160}
"""Rows of the sweep that the README shows, and the side in pixels of the images that cost about as many GFLOPs."""
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
    header = ("config", "top-1 %", "same class as unmerged %", "tokens left", "GFLOPs (MACs)", "speed-up")
    rows = (_short_row(row) for row in results.rows if "control" not in row)
    return f"{markdown_table(header, rows, num_left=1)}\n{_measured(results)}\n"


def side_by_side() -> str:
    """Return ViT-L and DeiT-Tiny in one table: what merging gains, and its controls at equal cost."""
    rows = {row["name"]: row for row in read_sweep().rows}
    whole = json.loads((MEASURED / "whole_model.json").read_text(encoding="utf-8"))
    large = next(row for row in whole["rows"] if row["model"] == "ViT-L 224" and row["r"] == 8)
    header = ("model", "merging", "speed-up", "top-1 %", "random pruning, top-1 %", "downsampling, top-1 %")
    lines = [("ViT-L, 224 px", "r=8", f"{large['speedup']['median']:.2f}", *["not run"] * 3)]
    for name, size in (("unmerged", None), *DOWNSAMPLED.items()):
        controls = (f"method=random_prune,{name}", f"downsampled {size}x{size}")
        cells = [f"{rows[control]['top1']:.1f}" if size else "" for control in controls]
        row = rows[name]
        lines.append(("DeiT-Tiny, 224 px", name, f"{row['speedup']:.2f}", f"{row['top1']:.1f}", *cells))
    slower = (
        f"random weights, processor time of one thread, {whole['date']}; slicing tokens without any matching gives "
    )
    words = f"ViT-L: `{whole['command']}`, {slower}{large['oracle_speedup']['median']:.2f}. "
    return f"{markdown_table(header, lines, num_left=2)}\n{words}{_measured(read_sweep())}\n"


def _short_row(row: dict[str, Any]) -> tuple[str, ...]:
    method = row["config"]["method"]
    search = "" if METHODS[method].takes_r else f"{METHODS[method].search_field} "
    label = f"{METHODS[method].label}, {search}" + short_name(row["name"]).removeprefix(f"{method} ")
    name = row["name"] if row["name"] == "unmerged" else label
    values = (f"{row['top1']:.1f}", f"{row['agreement']:.1f}", f"{row['tokens']:.0f}", f"{row['gflops']:.2f}")
    return (name, *values, f"{row['speedup']:.2f}")


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


def tune() -> str:
    """Return what `tune` found on DeiT-Tiny, beside what costs as much, by case."""
    if not TUNE.is_file():
        return "Not run yet: `python benchmarks/tune.py`.\n"
    cases = {name: Results(**values) for name, values in json.loads(TUNE.read_text(encoding="utf-8")).items()}
    parts = [_tune_case(TUNE_CASES[name], results) for name, results in cases.items()]
    first = next(iter(cases.values()))
    environment, packages = first.environment, first.environment["packages"]
    conditions = (
        f"DeiT-Tiny and 1,000 ImageNet photographs, one a class, from EliSchwartz/imagenet-sample-images on GitHub. "
        f"Differences of up to two points are within the noise. `python benchmarks/tune.py --model "
        f"facebook/deit-tiny-patch16-224 --data PHOTOGRAPHS --against 'constant ToMe' 'smaller images'`; "
        f"{first.run['dtype']}, {first.run['attention']}, "
        f"batches of {first.run['batch_size']}, {environment['device_name']}, {environment['threads']} thread, "
        f"processor time of a busy machine, torch "
        f"{packages['torch']}, transformers {packages['transformers']}, {environment['date'][:10]}."
    )
    return "\n".join([*parts, conditions]) + "\n"


def _tune_case(title: str, results: Results) -> str:
    """Return what one case chose, the table beside it, and the differences in pairs."""
    tuned, by_name = results.run["tuned"], {row["name"]: row for row in results.rows}
    labels = {"unmerged": "unmerged", **{variant: label for label, variant in tuned["rows"].items()}}
    header = ("", "top-1 %", "points lost", "same class as unmerged %", "GFLOPs (MACs), of unmerged", "speed-up")
    rows = [_tuned_row(label, by_name[variant], results.rows[0]) for variant, label in labels.items()]
    labelled = f"{tuned['labels']} labels" if tuned["labels"] else "no labels"
    notes = [
        f"Chosen: `{tuned['name']}`, by {tuned['evaluations']} evaluations of {tuned['choosing']} photographs "
        f"({labelled}) in {tuned['seconds']:.0f} s of processor time; the figures are those of the "
        f"{results.data['num_samples']} others."
    ]
    mixed = tuned["rows"].get("smaller images, mixed to equal time")
    if mixed is not None:
        notes.append(
            f"Mixed: each photograph is drawn for one of two sizes, {mixed}, so that the mean time is that of the "
            "choice; the figures are those expected of the draw."
        )
    notes += _pays_from(tuned)
    parts = [f"**{title}**", "", markdown_table(header, rows, num_left=1), " ".join(notes), ""]
    if tuned["gains"]:
        parts.append(
            markdown_table(("tuned against, in pairs", *GAINS), map(_gain, tuned["gains"].items()), num_left=1)
        )
    return "\n".join(parts)


TUNE = MEASURED / "tune.json"
TUNE_CASES = {
    "half": "Half of the GFLOPs, and 0.7 from the front of the same run, chosen without labels",
    "half of the time": "Half of the measured time, chosen without labels (the same search)",
    "0.6 of the time": "0.6 of the measured time, chosen without labels (the same search)",
    "half, image size free": "Half of the GFLOPs, the image size free, labels used",
}


def _pays_from(tuned: dict[str, Any]) -> list[str]:
    """Return where on the front merging begins to be faster than the unmerged model with its exact last block."""
    front = [(point["budget"], point["time"]) for point in tuned["front"] if point.get("time") is not None]
    if not front:
        return []
    to_beat = tuned["time_unmerged_exact_last_block"]
    start = break_even(front, to_beat)
    first = "nowhere on the front" if start is None else f"from {start:.2f} of the GFLOPs on"
    times = ", ".join(f"{seconds:.2f} at {budget:g}" for budget, seconds in front)
    return [f"Merging pays {first}: the exact last block alone takes {to_beat:.2f} of the time, the front {times}."]


GAINS = ("points of top-1", "agreement, points")


def _tuned_row(label: str, row: dict[str, Any], unmerged: dict[str, Any]) -> tuple[str, ...]:
    lost = f"{row['drop']:.1f} ({row['drop_low']:.1f} to {row['drop_high']:.1f})"
    speedup = "-" if row["speedup"] is None else f"{row['speedup']:.2f}"
    share = row["gflops"] / unmerged["gflops"]
    return (label, f"{row['top1']:.1f}", lost, f"{row['agreement']:.1f}", f"{share:.3f}", speedup)


def _gain(labelled: tuple[str, dict[str, list[float]]]) -> tuple[str, ...]:
    label, measures = labelled
    return (label, *(f"{gain:+.1f} ({low:+.1f} to {high:+.1f})" for gain, low, high in measures.values()))


def _section(
    name: str,
    table: Callable[[Result], str],
    sentence: Callable[[Result], str],
    *,
    command: str = "",
) -> Callable[[], str]:
    """Return a section: the table of a benchmark and what it was measured on; says so where it was not run.

    Args:
        name: of the file in `benchmarks/measured`.
        table: from what the file holds to a Markdown table.
        sentence: the same to how it was measured, beginning behind the command.
        command: the script and its options, where they are not `name`.
    """

    def section() -> str:
        path = MEASURED / f"{name}.json"
        if not path.is_file():
            return f"Not run yet: `python benchmarks/{command or f'{name}.py'}`.\n"
        result = json.loads(path.read_text(encoding="utf-8"))
        return f"{table(result).rstrip()}\n\n`{result['command']}`{sentence(result)}\n"

    return section


def _machine(result: Result, conditions: str, library: str = "transformers") -> str:
    """Return device, conditions, versions and date of a measurement."""
    environment, packages = result["environment"], result["environment"]["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", library))
    return f"{environment['device_name']}, {conditions}, {versions}, {result['date']}."


def _kv_cache(name: str, others: str = "eviction", command: str = "") -> Callable[[], str]:
    """Return the section of a benchmark of caches, whose rows are compared with the best of the `others`."""

    def sentence(result: Result) -> str:
        machine = _machine(result, "one thread, float32")
        return (
            f": {result['rows'][0]['documents']} documents. {result['about']} {machine} The shares compare with the "
            f"{others} of the lowest KL in this run; the interval is that of a bootstrap over the documents."
        )

    return _section(name, partial(_kv_cache_table, others=others), sentence, command=command)


def _kv_cache_table(result: Result, others: str) -> str:
    header = (
        "method",
        "kept",
        "KL",
        f"of the KL of the best {others}, 95 % interval",
        "agreement",
        "perplexity",
        "needle digits",
    )
    rows = []
    for row in result["rows"]:
        share = f"{row['ratio']:.2f} ({row['interval']})" if row.get("ratio") is not None and row["kl"] else "-"
        cells = (row["way"], f"{row['keep_ratio']:.0%}", f"{row['kl']:.4f}", share, f"{row['agreement']:.3f}")
        rows.append((*cells, f"{row['perplexity']:.2f}", f"{row['digits']:.2f}"))
    return markdown_table(header, rows, num_left=1)


def _kv_cache_cost_table(result: Result) -> str:
    rows = (
        (
            row["case"],
            f"{row['entries']:,}",
            f"{row['seconds']:.4f}",
            "-" if row["share"] is None else f"{row['share']:.0%}",
        )
        for row in result["rows"]
    )
    return markdown_table(("step", "entries", "seconds", "of the prefill, or of the full cache"), rows, num_left=1)


def _denoisers(name: str, command: str = "") -> Callable[[], str]:
    """Return the section of a benchmark of denoisers."""

    def sentence(result: Result) -> str:
        return f"; {_machine(result, 'one thread, float32', 'diffusers')} Target: {result['target']}."

    return _section(name, markdown, sentence, command=command)


SECTIONS: dict[str, Callable[[], str]] = {
    "sweep": sweep,
    "sweep_merging": sweep_merging,
    "side_by_side": side_by_side,
    "tune": tune,
    "tune_trials": _section("tune_trials", markdown, lambda result: f"; {_machine(result, 'one thread, float32')}"),
    "tune_shipped": _section(
        "tune_shipped",
        markdown,
        lambda result: f"; {_machine(result, 'one thread, float32')} Target: {result['target']}.",
    ),
    "kv_cache": _kv_cache("kv_cache"),
    "kv_cache_2048": _kv_cache("kv_cache_2048", command="kv_cache.py"),
    "kv_cache_kvpress": _kv_cache("kv_cache_kvpress", "press of kvpress"),
    "diffusion": _denoisers("diffusion"),
    "diffusion_quality": _denoisers("diffusion_quality"),
    "diffusion_trials": _denoisers("diffusion_trials"),
    "diffusion_unet": _denoisers("diffusion_unet"),
    "diffusion_unet_128": _denoisers("diffusion_unet_128", "diffusion_unet.py --sides 128"),
    "kv_cache_cost": _section(
        "kv_cache_cost",
        _kv_cache_cost_table,
        lambda result: f": {result['about']} {_machine(result, 'a busy machine, float32')}",
    ),
    "cifar": _section(
        "cifar",
        markdown,
        lambda result: f"; {_machine(result, 'one thread of a busy machine, processor time, float32')}",
    ),
    "composition": composition,
}


def fill(text: str) -> str:
    """Return a page with each marked section written anew.

    Raises:
        KeyError: a section of an unknown name.
    """
    return MARKED.sub(lambda match: f"{match[1]}{SECTIONS[match[2]]()}{match[3]}", text)

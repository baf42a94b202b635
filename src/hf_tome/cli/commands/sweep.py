"""`hf-tome sweep`: a grid of merge configs on one model and data set, with two controls at the same cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import common
from ..common import Format, example
from ..job_options import JobArguments, takes_job

EXAMPLE = example(
    "hf-tome sweep --model facebook/deit-tiny-patch16-224 --data imagenet/ --r 4,8,13,16 --threshold 0.9,0.8 \\\n"
    "    --out sweep/",
    "evaluates ToMe at four r and MaMe at two thresholds, each beside random pruning to as many tokens and the "
    "unmerged model on images downsampled to as many GFLOPs, and plots all of them in sweep/pareto.png. The same "
    "command resumes a run that was killed.",
)

RList = Annotated[str, typer.Option("--r", help="Tokens merged a block, separated by commas.")]
ThresholdList = Annotated[str, typer.Option("--threshold", help="MaMe's thresholds, separated by commas.")]
ScheduleList = Annotated[
    str, typer.Option("--schedule", help="Schedules of r, separated by commas: 0 constant, -1 falling, 1 rising.")
]
LayersList = Annotated[
    str, typer.Option("--layers", help="Blocks that merge, separated by commas: default, 0-7, 4, ...")
]


@takes_job
def sweep_command(
    arguments: JobArguments,
    method: Annotated[str, typer.Option(help="Merging methods, separated by commas.")] = "tome,mame",
    r: RList = "4,8,13,16",
    threshold: ThresholdList = "0.9,0.8,0.7",
    schedule: ScheduleList = "0",
    layers: LayersList = "default",
    where: Annotated[
        str, typer.Option(help="Where tokens merge: auto, tower, or projected (before a language model).")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the results, the plot and each sample's results.")] = Path(
        "sweep"
    ),
    format: common.FormatOption = Format.table,
    debug: common.DebugOption = False,
) -> None:
    """Evaluate a grid of merge configs, each beside two controls, and print one row a config.

    The controls say what merging is worth: the unmerged model on downsampled images at equal GFLOPs, and random
    pruning at equal tokens.
    """
    from ...evaluation.running.runner import evaluate
    from ...evaluation.search.sweep import Grid, with_controls

    grid = Grid(
        methods=_list(method, str, "--method"),
        r=_list(r, int, "--r"),
        schedules=_list(schedule, float, "--schedule"),
        thresholds=_list(threshold, float, "--threshold"),
        layers=_list(layers, _blocks, "--layers"),
        where=where,
    )
    configs = grid.configs()
    with arguments.build(out) as (job, batch_size):
        variants, notes = with_controls(job, configs, batch_size=batch_size)
        with common.progress(f"{job.model_name}, {len(variants) + 1} configs and controls") as update:
            results = evaluate(job, variants, batch_size=batch_size, on_progress=update, out=out)
        if common.is_main_process():
            results.run["notes"] = [*results.run.get("notes", ()), *notes]
            common.publish(results, format, out)


def _list(text: str, read: Callable[[str], Any], option: str) -> list:
    try:
        return [read(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r}: {error}") from error


def _blocks(text: str) -> list[int] | None:
    if text == "default":
        return None
    from ...config.text import parse_span

    return parse_span(text)

"""`hf-tome sweep`: a grid of merge configs on one model and data set, with two controls at the same cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import common
from .common import Dtype, Format, example

EXAMPLE = example(
    "hf-tome sweep --model facebook/deit-tiny-patch16-224 --data imagenet/ --r 4,8,13,16 --threshold 0.9,0.8 \\\n"
    "    --out sweep/",
    "evaluates ToMe at four r and MaMe at two thresholds, each beside random pruning to as many tokens and the "
    "unmerged model on images downsampled to as many GFLOPs, and plots all of them in sweep/pareto.png. The same "
    "command goes on with a run that was killed.",
)

RList = Annotated[str, typer.Option("--r", help="Tokens merged a block, separated by commas.")]
ThresholdList = Annotated[str, typer.Option("--threshold", help="MaMe's thresholds, separated by commas.")]
ScheduleList = Annotated[
    str, typer.Option("--schedule", help="Schedules of r, separated by commas: 0 constant, -1 falling, 1 rising.")
]
LayersList = Annotated[
    str, typer.Option("--layers", help="Blocks that merge, separated by commas: default, 0-7, 4, ...")
]


def sweep_command(
    model: common.ModelOption,
    data: common.DataOption,
    method: Annotated[str, typer.Option(help="Merging methods, separated by commas.")] = "tome,mame",
    r: RList = "4,8,13,16",
    threshold: ThresholdList = "0.9,0.8,0.7",
    schedule: ScheduleList = "0",
    layers: LayersList = "default",
    task: common.TaskOption = "image-classification",
    split: common.SplitOption = None,
    labels: common.LabelsOption = None,
    class_names: common.ClassNamesOption = None,
    templates: common.TemplatesOption = None,
    clips: common.ClipsOption = 1,
    crops: common.CropsOption = 1,
    prompt: common.PromptOption = None,
    max_new_tokens: common.MaxNewTokensOption = None,
    limit: common.LimitOption = None,
    batch_size: common.BatchSizeOption = 16,
    seed: common.SeedOption = 0,
    streaming: common.StreamingOption = False,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = Dtype.float32,
    out: Annotated[Path, typer.Option(help="Folder for the results, the plot and each sample's results.")] = Path(
        "sweep"
    ),
    restart: common.RestartOption = False,
    format: common.FormatOption = Format.table,
    debug: common.DebugOption = False,
) -> None:
    """Evaluate a grid of merge configs, each beside two controls, and print one row a config.

    The controls say what merging is worth: the unmerged model on downsampled images at equal GFLOPs, and random
    pruning at equal tokens.
    """
    from ..evaluation.sweep import Grid, with_controls
    from ..evaluation.task import JobOptions, evaluate
    from ..evaluation.tasks import build_job

    grid = Grid(
        methods=_list(method, str, "--method"),
        r=_list(r, int, "--r"),
        schedules=_list(schedule, float, "--schedule"),
        thresholds=_list(threshold, float, "--threshold"),
        layers=_list(layers, _blocks, "--layers"),
    )
    configs, device = grid.configs(), common.pick_device(device)
    options = JobOptions(
        model=model,
        data=data,
        split=split,
        limit=limit,
        seed=seed,
        streaming=streaming,
        labels=labels,
        device=device,
        dtype=dtype.value,
        class_names=class_names,
        templates=templates,
        clips=clips,
        crops=crops,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
    )
    job = build_job(task, options)
    size = common.pick_batch_size(batch_size, device)
    variants, notes = with_controls(job, configs, batch_size=size)
    if restart:
        common.forget_samples(out)
    with common.progress(f"{job.model_name}, {len(variants) + 1} configs and controls") as update:
        results = evaluate(job, variants, batch_size=size, on_progress=update, out=out)
    if common.is_main_process():
        results.run["notes"] = notes
        common.write_results(results, out)
        common.show_results(results, format)


def _list(text: str, read: Callable[[str], Any], option: str) -> list:
    try:
        return [read(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r}: {error}") from error


def _blocks(text: str) -> list[int] | None:
    if text == "default":
        return None
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(first)]

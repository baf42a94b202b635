"""`hf-tome eval`: accuracy and speed of a model on a data set, for each merge config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import (
    BatchSizeOption,
    ConfigsOption,
    DebugOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    Format,
    FormatOption,
    example,
    parse_configs,
    pick_device,
    progress,
    show_results,
    write_results,
)

EXAMPLE = example(
    "hf-tome eval --model facebook/deit-tiny-patch16-224 --data imagenet/ --split validation \\\n"
    "    --config r=8 --config r=16 --out results/",
    "evaluates the model on the images in imagenet/validation/<class>/, unmerged and merging 8 and 16 tokens a block, "
    "prints a table, and writes results.json, report.md and pareto.png to results/.",
)


def eval_command(
    model: Annotated[str, typer.Option(help="Hub id or folder of the model.")],
    data: Annotated[str, typer.Option(help="Hub id or folder of the data: <split>/<class>/<image>, or Parquet.")],
    config: ConfigsOption = [],  # noqa: B006 (typer copies it)
    task: Annotated[str, typer.Option(help="What to evaluate: image-classification.")] = "image-classification",
    split: Annotated[
        str | None, typer.Option(help="Split of the data; else validation or test, whichever there is.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV with columns label (or wnid) and name: what the data's labels are called by the model. A "
            "classes.csv beside the data is found by itself."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate so many images, drawn at random by --seed.")
    ] = None,
    batch_size: BatchSizeOption = 16,
    seed: Annotated[int, typer.Option(help="For the draw of --limit.")] = 0,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read a Hub data set without downloading all of it first.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write results.json, report.md and pareto.png to.")
    ] = None,
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Evaluate a model on a data set, unmerged and with each merge config, and print one row a config.

    Labels are matched to the model's by name or wnid. Images that cannot be read are skipped, counted and listed.
    """
    configs = parse_configs(config)  # before anything heavy is loaded

    from ..evaluation.task import JobOptions, evaluate
    from ..evaluation.tasks import build_job

    job = build_job(
        task,
        JobOptions(
            model=model,
            data=data,
            split=split,
            limit=limit,
            seed=seed,
            streaming=streaming,
            labels=labels,
            device=pick_device(device),
            dtype=dtype.value,
        ),
    )
    with progress(f"{job.model_name}, {len(configs) + 1} configs") as update:
        results = evaluate(job, configs, batch_size=batch_size, on_progress=update)
    if out is not None:
        write_results(results, out)
    show_results(results, format)

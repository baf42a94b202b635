"""`hf-tome eval`: accuracy and speed of a model on a data set, for each merge config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import common
from ..common import Format, example
from ..job_options import JobArguments, takes_job

EXAMPLE = example(
    "hf-tome eval --model facebook/deit-tiny-patch16-224 --data imagenet/ --split validation \\\n"
    "    --config r=8 --config r=16 --out results/",
    "evaluates the model on the images in imagenet/validation/<class>/, unmerged and merging 8 and 16 tokens a block, "
    "prints a table, and writes results.json, report.md and pareto.png to results/. The same command resumes a "
    "run that was killed; `torchrun --nproc-per-node 4 -m hf_tome eval ...` shares it among four processes.",
)


@takes_job
def eval_command(
    arguments: JobArguments,
    config: common.ConfigsOption = [],  # noqa: B006 (typer copies it)
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write results.json, report.md, pareto.png and each sample's results to."),
    ] = None,
    format: common.FormatOption = Format.table,
    debug: common.DebugOption = False,
) -> None:
    """Evaluate a model on a data set, unmerged and with each merge config, and print one row a config.

    Labels are matched to the model's by name or wnid. Samples that cannot be read are skipped, counted and listed.
    With --out, each sample's results are kept as they come, and a run that was killed resumes from there.
    """
    configs = common.parse_configs(config)  # before anything heavy is loaded

    from ...evaluation.running.runner import evaluate

    with arguments.build(out) as (job, batch_size):
        with common.progress(f"{job.model_name}, {len(configs) + 1} configs") as update:
            results = evaluate(job, configs, batch_size=batch_size, on_progress=update, out=out)
        if common.is_main_process():
            common.publish(results, format, out)

"""`hf-tome tune`: the strongest merge that costs no more than allowed, written as a merge_config.json."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from . import common
from .common import Format, example
from .job_options import JobArguments, takes_job

EXAMPLE = example(
    "hf-tome tune --model facebook/deit-base-patch16-224 --data imagenet/ --limit 2000 --max-drop 0.5 --out tuned/",
    "tries ToMe's r and MaMe's threshold by bisection, and writes the fastest config that loses at most half a point "
    "of top-1 accuracy to tuned/merge_config.json, which --config and hf_tome.from_pretrained take.",
)


class Criterion(StrEnum):
    """What configs within the target are compared by."""

    speedup = "speedup"
    gflops = "gflops"


@takes_job
def tune_command(
    arguments: JobArguments,
    max_drop: Annotated[float, typer.Option(help="Points of accuracy (mAP, CIDEr) that merging may cost.")] = 1.0,
    min_agreement: Annotated[
        float | None, typer.Option(help="Percent of samples that must get the unmerged model's class.")
    ] = None,
    sure: Annotated[
        bool,
        typer.Option(
            "--sure/--not-sure",
            help="The upper end of the drop's 95 % interval must be within --max-drop, or the measured drop alone.",
        ),
    ] = True,
    by: Annotated[
        Criterion,
        typer.Option(help="What configs within the target are compared by: speedup, measured in turns, or gflops."),
    ] = Criterion.speedup,
    method: Annotated[str, typer.Option(help="Merging methods, separated by commas.")] = "tome,mame",
    where: Annotated[
        str, typer.Option(help="Where tokens merge: auto, tower, or projected (before a language model).")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for merge_config.json and the results.")] = Path("tuned"),
    format: common.FormatOption = Format.table,
    debug: common.DebugOption = False,
) -> None:
    """Find the config that speeds a model up most while it costs no more accuracy than allowed.

    The results show all configs that were tried. The accuracy is that of the data given here: keep other data to
    confirm the choice on, with `hf-tome eval`.
    """
    from ..config.merge_config import CONFIG_NAME
    from ..evaluation.runner import Progress
    from ..evaluation.search.tune import Target, TuneError, tune

    target = Target(max_drop=max_drop, min_agreement=min_agreement, sure=sure)
    with arguments.build(out) as (job, batch_size), ExitStack() as stack:

        def on_progress(name: str) -> Progress:
            stack.close()  # the bar of the config before
            return stack.enter_context(common.progress(name))

        methods = [name.strip() for name in method.split(",")]
        try:
            config, results = tune(
                job, methods, target, out=out, by=by.value, where=where, batch_size=batch_size, on_progress=on_progress
            )
        except TuneError as error:
            if common.is_main_process():
                (out / CONFIG_NAME).unlink(missing_ok=True)  # of an earlier run, which these results do not bear out
                common.write_results(error.results, out)
            raise ValueError(f"{error} What was tried is in {out}.") from error
        stack.close()
        if common.is_main_process():
            config.save_pretrained(out)
            common.publish(results, format, out)
            typer.echo(f"{results.run['notes'][0]}; written to {out / 'merge_config.json'}", err=True)

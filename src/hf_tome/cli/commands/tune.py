"""`hf-tome tune`: the strongest merge that costs no more than allowed, written as a merge_config.json."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import common
from ..common import Format, example
from ..job_options import JobArguments, takes_job

EXAMPLE = example(
    "hf-tome tune --model facebook/deit-base-patch16-224 --data photographs/ --budget 0.5 --out tuned/",
    "writes the config that changes the model's outputs least at half of the GFLOPs to tuned/merge_config.json, which "
    "--config and hf_tome.from_pretrained take, and shows beside it what else costs as much. No labels are needed.",
)


class Criterion(StrEnum):
    """What configs within the target are compared by."""

    speedup = "speedup"
    gflops = "gflops"


class ImageSize(StrEnum):
    """Whether the image size is a choice."""

    fixed = "fixed"
    free = "free"


@takes_job
def tune_command(
    arguments: JobArguments,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of the unmerged model's cost that may be left, in (0, 1]; else --max-drop holds."),
    ] = None,
    image_size: Annotated[
        ImageSize, typer.Option(help="With --budget: keep the images' size, or let the search take smaller ones.")
    ] = ImageSize.fixed,
    choose: Annotated[
        int, typer.Option(min=8, help="With --budget: samples to choose by; the others confirm the choice.")
    ] = 96,
    time_limit: Annotated[float | None, typer.Option(help="With --budget: seconds that the search may take.")] = None,
    by_block: Annotated[
        bool, typer.Option("--by-block", help="With --budget: draw how sensitive each block is, as blocks.png.")
    ] = False,
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
        Criterion | None,
        typer.Option(
            help="What the budget is of, or configs within the target are compared by: gflops (by default with "
            "--budget), or speedup, measured interleaved."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="Merging methods, separated by commas.")] = "tome,mame",
    where: Annotated[
        str, typer.Option(help="Where tokens merge: auto, tower, or projected (before a language model).")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for merge_config.json and the results.")] = Path("tuned"),
    format: common.FormatOption = Format.table,
    debug: common.DebugOption = False,
) -> None:
    """Find the config that changes a model least within a budget, or the fastest that costs no more than allowed.

    With --budget the schedule, the metric and more are chosen on some samples, which need no labels, and confirmed on
    others. With --max-drop alone r and the threshold are found by bisection, on all samples: keep others to confirm
    the choice on, with `hf-tome eval`.
    """
    if budget is not None:
        criterion = "time" if by is Criterion.speedup else "gflops"
        options = {"image_size": image_size.value, "choose": choose, "time_limit": time_limit, "by_block": by_block}
        _tune_to_budget(arguments, Path(out), format, method, {"share": budget, "by": criterion}, options)
        return
    from ...config.json_file import CONFIG_NAME
    from ...evaluation.running.runner import Progress
    from ...evaluation.search.tune import Target, TuneError, tune

    target = Target(max_drop=max_drop, min_agreement=min_agreement, sure=sure)
    with arguments.build(out) as (job, batch_size), ExitStack() as stack:

        def on_progress(name: str) -> Progress:
            stack.close()  # the bar of the config before
            return stack.enter_context(common.progress(name))

        methods = [name.strip() for name in method.split(",")]
        try:
            config, results = tune(
                job,
                methods,
                target,
                out=out,
                by=(by or Criterion.speedup).value,
                where=where,
                batch_size=batch_size,
                on_progress=on_progress,
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


def _tune_to_budget(
    arguments: JobArguments,
    out: Path,
    format: Format,
    method: str,
    budget: dict[str, Any],
    options: dict[str, Any],
) -> None:
    from ...evaluation.search.budget.budget import Budget, tune_to_budget
    from ...evaluation.search.budget.trials import FILE
    from ...evaluation.search.tuning import job_with_or_without_labels, save

    wanted = Budget(**budget)
    with arguments.build(out, job_with_or_without_labels) as (job, batch_size), common.progress("tune") as update:
        if arguments.restart:
            (out / FILE).unlink(missing_ok=True)
            common.forget_samples(out / "confirmed")
        config, results = tune_to_budget(
            job,
            wanted,
            methods=[name.strip() for name in method.split(",")],
            seed=arguments.seed,
            out=out,
            batch_size=batch_size,
            on_trial=lambda done, total, name: update(done, total),
            **options,
        )
        if common.is_main_process():
            save(config, results, out)
            common.publish(results, format, out)
            typer.echo(f"{results.run['notes'][0]}; written to {out / 'merge_config.json'}", err=True)

"""`hf-tome tune`: the strongest merge that costs no more than allowed, written as a merge_config.json."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import common
from ..common import Format, example
from ..job_options import JobArguments, takes_job

if TYPE_CHECKING:
    from ...evaluation.search.budget.budget import Budget
    from ...evaluation.store.results import Results

EXAMPLE = example(
    "hf-tome tune --model facebook/deit-base-patch16-224 --data photographs/ --budget 0.5 --out tuned/",
    "writes the config that changes the model's outputs least at half of the GFLOPs to tuned/merge_config.json, which "
    "--config and hf_tome.from_pretrained take, and shows beside it what else costs as much. No labels are needed.",
)


class Criterion(StrEnum):
    """What a budget is of."""

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
        typer.Option(
            help="Share of the unmerged model's cost that may be left, in (0, 1]; 0.5 by default, or --max-drop."
        ),
    ] = None,
    image_size: Annotated[
        ImageSize, typer.Option(help="Keep the images' size, or let the search take smaller ones.")
    ] = ImageSize.fixed,
    choose: Annotated[int, typer.Option(min=8, help="Samples to choose by; the others confirm the choice.")] = 96,
    time_limit: Annotated[float | None, typer.Option(help="Seconds that the search may take.")] = None,
    by_block: Annotated[
        bool, typer.Option("--by-block", help="Draw how sensitive each block is, as blocks.png.")
    ] = False,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Instead of a budget, points of accuracy (mAP, CIDEr) that merging may cost."),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            help="Percent of samples that must keep the unmerged class, beside --max-drop or whatever the drop."
        ),
    ] = None,
    sure: Annotated[
        bool,
        typer.Option(
            "--sure/--not-sure",
            help="The upper end of the drop's 95 % interval must be within --max-drop, or the measured drop alone.",
        ),
    ] = True,
    by: Annotated[
        Criterion, typer.Option(help="What the budget is of: gflops, or speedup, the time measured on this device.")
    ] = Criterion.gflops,
    method: Annotated[str, typer.Option(help="Merging methods, separated by commas.")] = "tome,mame",
    where: Annotated[
        str, typer.Option(help="Where tokens merge: auto, tower, or projected (before a language model).")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for merge_config.json and the results.")] = Path("tuned"),
    format: common.FormatOption = Format.table,
    debug: common.DebugOption = False,
) -> None:
    """Find the config that changes a model least within a budget, or the strongest that costs no more than allowed.

    The schedule, the metric and more are chosen on some samples, which need no labels, and confirmed on others. With
    --max-drop the strongest of the whole front that holds it on the confirming samples is taken. Projected tokens
    merge once, in front of a language model: with --where projected a budget is the share of them that is left.
    """
    from ...evaluation.search.budget.budget import Budget

    wanted = Budget.of(budget, max_drop, min_agreement, by="time" if by is Criterion.speedup else "gflops", sure=sure)
    options = {
        "methods": [name.strip() for name in method.split(",")],
        "where": where,
        "image_size": image_size.value,
        "choose": choose,
        "time_limit": time_limit,
        "by_block": by_block,
    }
    _tune(arguments, Path(out), format, wanted, options)


def _write_failure(results: Results, out: Path) -> None:
    from ...config.json_file import CONFIG_NAME

    if common.is_main_process():
        (out / CONFIG_NAME).unlink(missing_ok=True)  # of an earlier run, which these results do not bear out
        common.write_results(results, out)


def _tune(arguments: JobArguments, out: Path, format: Format, budget: Budget, options: dict[str, Any]) -> None:
    from ...evaluation.search.budget.budget import tune_to_budget
    from ...evaluation.search.tuning import forget, job_with_or_without_labels, save
    from ...evaluation.variants import UNMERGED

    with arguments.build(out, job_with_or_without_labels) as (job, batch_size), common.progress("tune") as update:
        if arguments.restart:
            forget(out)
            common.forget_samples(out / "confirmed")
        config, results = tune_to_budget(
            job,
            budget,
            seed=arguments.seed,
            out=out,
            batch_size=batch_size,
            on_trial=lambda done, total, name: update(done, total),
            **options,
        )
        if budget.max_drop is not None and results.run["tuned"]["name"] == UNMERGED:
            _write_failure(results, out)
            note = next(note for note in results.run["notes"] if note.startswith("nothing of the front"))
            raise ValueError(f"{note[0].upper()}{note[1:]}. What was tried is in {out}.")
        if common.is_main_process():
            save(config, results, out)
            common.publish(results, format, out)
            typer.echo(f"{results.run['notes'][0]}; written to {out / 'merge_config.json'}", err=True)

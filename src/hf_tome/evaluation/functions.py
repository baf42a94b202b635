"""`hf_tome.evaluate`, `sweep`, `tune`, `benchmark`: measure from Python, models and data as objects or by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import MergeConfig
from ..config.text import configs_from
from ..profiling.benchmark import benchmark as benchmark_model
from ..profiling.example_inputs import example_inputs
from .reporting.shown import MeasuredResults
from .reporting.timings import BenchmarkResults
from .running.loop import Progress
from .running.runner import evaluate as evaluate_job
from .search.budget.budget import MAX_EVALUATIONS, Budget, tune_to_budget
from .search.budget.front import BUDGETS
from .search.budget.samples import COMMON
from .search.sweep import Grid, with_controls
from .search.tuning import job_with_or_without_labels, save
from .sources import UnknownTaskError, image_tower, job_from, model_from
from .tasks.unlabelled import TASK_NAME, unlabelled_images


def evaluate(
    model: Any,
    data: Any,
    configs: Any,
    *,
    task: str | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    batch_size: int = 16,
    progress: bool = True,
    **options: Any,
) -> MeasuredResults:
    """Evaluate a model on data, unmerged and with each merge config.

    Example:
        results = hf_tome.evaluate("digits-vit", "digits", [MergeConfig(r=8), MergeConfig(r=16)], limit=100)

    Args:
        model: a transformers model or a pipeline around one, a folder, a Hub id, or a shipped model such as
            `digits-vit`. A model object stays on its device, and comes back as it was.
        data: a `datasets.Dataset` with a column `image`, `video` or `audio` and a column `label` (captions and
            questions have columns of text), a folder, a Hub id, or `digits`.
        configs: a `MergeConfig` or several; texts such as `"r=8"` too. The unmerged model always runs.
        task (`str`, *optional*): by default the one that the model's class has.
        limit (`int`, *optional*): evaluate a random subset of N samples.
        out (*optional*): folder for `results.json`, `report.md`, `pareto.png` and each sample's results; the same
            call resumes a run that was interrupted.
        batch_size (`int`): samples in a batch.
        progress (`bool`): show a bar in a notebook or on a terminal.
        options: `processor` of a model object (by default the one saved where the model came from), `split`, `seed`,
            `device`, `dtype`, `labels` and what single tasks take: `class_names`, `templates`, `clips`, `crops`,
            `prompt`, `max_new_tokens`.

    Returns:
        Results with `rows`, `to_pandas()`, `to_markdown()` and `plot()`, and a table in notebooks.

    Raises:
        UnsupportedModelError: merging does not work on this model.
        ValueError: a config does not fit the model, or the data cannot be read or do not fit.
        TypeError: `model`, `data` or `configs` is of another type.
        OSError: there is no such model.
    """
    chosen = configs_from(configs)
    job = job_from(model, data, task=task, limit=limit, **options)
    return _run(job, chosen, batch_size, out, progress)


def sweep(
    model: Any,
    data: Any,
    *,
    methods: Sequence[str] = ("tome", "mame"),
    r: Sequence[int] = (4, 8, 13, 16),
    thresholds: Sequence[float] = (0.9, 0.8, 0.7),
    schedules: Sequence[float] = (0.0,),
    layers: Sequence[Sequence[int] | None] = (None,),
    task: str | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    batch_size: int = 16,
    progress: bool = True,
    **options: Any,
) -> MeasuredResults:
    """Evaluate a grid of merge configs, each beside two controls at equal cost.

    The controls are random pruning to as many tokens, and the unmerged model on downsampled images at equal GFLOPs.

    Args:
        model, data, task, limit, out, batch_size, progress, options: as in `evaluate`.
        methods: merging methods.
        r: tokens merged in each block, for the methods that take it.
        thresholds: MaMe's thresholds.
        schedules: how `r` changes over the blocks: 0 constant, -1 falling, 1 rising.
        layers: the blocks that merge; `None` is the method's default.

    Returns, raises:
        As `evaluate`; a config of the grid that merges nothing is a ValueError.
    """
    grid = Grid(methods=methods, r=r, schedules=schedules, thresholds=thresholds, layers=layers)
    configs = grid.configs()
    job = job_from(model, data, task=task, limit=limit, **options)
    variants, notes = with_controls(job, configs, batch_size=batch_size)
    return _run(job, variants, batch_size, out, progress, notes)


def tune(
    model: Any,
    data: Any,
    *,
    budget: float | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    by: str = "gflops",
    sure: bool = True,
    methods: Sequence[str] = ("tome", "mame"),
    where: str = "auto",
    image_size: str = "fixed",
    task: str | None = None,
    choose: int = COMMON,
    confirm: int | None = 1000,
    seed: int = 0,
    max_evaluations: int = MAX_EVALUATIONS,
    time_limit: float | None = None,
    front: Sequence[float] = BUDGETS,
    by_block: bool = False,
    out: str | Path | None = None,
    batch_size: int = 16,
    progress: bool = True,
    **options: Any,
) -> tuple[MergeConfig, MeasuredResults]:
    """Find the merge that changes a model's outputs least within a budget; labels are not needed.

    Example:
        config, results = hf_tome.tune("facebook/deit-small-patch16-224", "photographs/", budget=0.5)

    Args:
        model, data, batch_size, progress, options: as in `evaluate`; a folder of images needs no labels here.
        budget: the share of the unmerged model's cost that may be left, in (0, 1]; 0.5 by default.
        max_drop: instead of a budget, the points that may be lost of accuracy (without labels: the percentage of the
            samples whose class may change); the strongest of the front that holds it on the confirming samples.
        min_agreement: the percentage of the samples that must get the unmerged model's class, beside a `max_drop` or
            whatever the drop.
        by: what the budget is of: `"gflops"` (multiply-adds, matching counted) or measured `"time"` on this device.
        sure: the upper end of the drop's 95 % interval must be within `max_drop`, not the drop alone.
        methods: merging methods to choose among.
        where: where tokens merge, as in `MergeConfig`: in the blocks of a tower, or `"projected"`, once in front of a
            language model, where `budget` is the share of the image tokens, or of the time, that is left.
        image_size: `"free"` to try smaller images too.
        task (`str`, *optional*): by default the one that the model's class has, or images without labels.
        choose, confirm: how many samples to choose by, and how many others to confirm on.
        seed: for the draw of the samples.
        max_evaluations, time_limit: passes over the samples to choose by, and seconds that these may take.
        front: the other budgets that are searched.
        by_block: measure too how far the outputs move where tokens merge in one block alone (`blocks.png` in `out`).
        out (*optional*): folder for `merge_config.json`, the results and the front; the same call resumes from there.

    Returns:
        The config, and the results on the confirming samples, beside what else costs as much; `results.run["tuned"]`
        has the whole front.

    Raises:
        ValueError: a budget that nothing meets, too few samples or samples that are all alike, GFLOPs that are not
            known, or a time limit too short for one evaluation.
    """
    wanted = Budget.of(budget, max_drop, min_agreement, by=by, sure=sure)
    folder = None if out is None else Path(out)
    try:
        job = job_from(model, data, task=task, build=job_with_or_without_labels, **options)
    except UnknownTaskError:
        job = job_from(model, data, task=TASK_NAME, build=lambda _, made: unlabelled_images(made), **options)
    with progress_bar(f"{job.model_name}, tune", progress, unit="evaluations") as update:
        config, results = tune_to_budget(
            job,
            wanted,
            methods=methods,
            where=where,
            image_size=image_size,
            choose=choose,
            confirm=confirm,
            seed=seed,
            max_evaluations=max_evaluations,
            time_limit=time_limit,
            front=front,
            by_block=by_block,
            out=folder,
            batch_size=batch_size,
            on_trial=lambda done, total, name: update(done, total),
        )
    measured = MeasuredResults.of(results)
    if folder is not None:
        save(config, results, folder)
        measured.save(folder)
    return config, measured


def benchmark(
    model: Any,
    inputs: Mapping[str, Any] | None = None,
    config: Any = "r=8",
    *,
    batch_size: int | None = None,
    rounds: int = 10,
    warmup: int = 2,
    clock: str = "auto",
    device: str | None = None,
    dtype: str = "float32",
    progress: bool = True,
) -> BenchmarkResults:
    """Time a model unmerged, merged and as the slice oracle, interleaved; the model itself is not changed.

    Args:
        model: a transformers model or a pipeline around one, a folder, a Hub id, or a shipped model. Of one with a
            text tower, and no `inputs`, the image tower is timed.
        inputs (*optional*): the model's keyword arguments, on its device; random ones by default.
        config: a `MergeConfig` or several.
        batch_size (`int`, *optional*): of the random inputs; by default 16 on a CPU and 256 on a GPU.
        rounds (`int`): timed runs of each; on a busy machine take more.
        warmup (`int`): untimed runs of each before.
        clock (`str`): `wall`, `process` for processor time, or `auto`: `process` on a CPU, else `wall`.
        device, dtype: of a model that is loaded here.
        progress (`bool`): show a bar in a notebook or on a terminal.

    Returns:
        Results with `rows`, `to_pandas()`, `to_markdown()` and `plot()`, and a table in notebooks.

    Raises:
        UnsupportedModelError: merging does not work on this model.
        ValueError: a config does not fit the model, or the shape of its inputs is not known.
    """
    configs = configs_from(config)
    if inputs is not None and batch_size is not None:
        raise ValueError(
            "There are both `inputs` and a `batch_size`; the batch is that of the inputs, so leave it out."
        )
    loaded = model_from(model, device, dtype)
    if inputs is None:
        loaded = image_tower(loaded)
        on_cpu = next(loaded.parameters()).device.type == "cpu"
        inputs = example_inputs(loaded, batch_size or (16 if on_cpu else 256))
    benchmarks = []
    with progress_bar(f"{len(configs)} configs", progress) as update:
        for done, merge_config in enumerate(configs):
            update(done, len(configs))
            benchmarks.append(benchmark_model(loaded, inputs, merge_config, rounds=rounds, warmup=warmup, clock=clock))
    return BenchmarkResults(benchmarks)


def _run(
    job: Any,
    variants: Sequence[Any],
    batch_size: int,
    out: str | Path | None,
    progress: bool,
    notes: Sequence[str] = (),
) -> MeasuredResults:
    folder = None if out is None else Path(out)
    with progress_bar(f"{job.model_name}, {len(variants) + 1} configs", progress) as update:
        results = evaluate_job(job, variants, batch_size=batch_size, on_progress=update, out=folder)
    if notes:
        results.run["notes"] = [*results.run.get("notes", ()), *notes]
    measured = MeasuredResults.of(results)
    if folder is not None:
        measured.save(folder)
    return measured


@contextmanager
def progress_bar(description: str, shown: bool = True, unit: str = "samples") -> Iterator[Progress]:
    """Show a bar in a notebook, or on standard error if that is a terminal; yields `update(done, total)`."""
    from tqdm.auto import tqdm

    has_screen = sys.stderr.isatty() or "ipykernel" in sys.modules
    with tqdm(desc=description, unit=unit, leave=False, disable=not (shown and has_screen)) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        yield update

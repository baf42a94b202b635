"""`hf_tome.tune`: the search from Python, with a model and data as objects or by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ...config import MergeConfig
from ...files import write_whole
from ..data.labels import LabelError
from ..data.splits import DataError
from ..job import Job
from ..options import JobOptions
from ..reporting.tables import write_report
from ..store.results import Results
from ..tasks.registry import build_job
from ..tasks.unlabelled import UnlabelledImages, unlabelled_images, unlabelled_job
from .budget import MAX_EVALUATIONS, Budget, tune_to_budget
from .front import BUDGETS
from .samples import COMMON
from .trials import Progress

logger = logging.getLogger(__name__)

IMAGE_TASK = "image-classification"


def tune(
    model: Any,
    data: Any,
    *,
    budget: float | None = None,
    max_drop: float | None = None,
    by: str = "gflops",
    sure: bool = True,
    methods: Sequence[str] = ("tome", "mame"),
    image_size: str = "fixed",
    task: str = IMAGE_TASK,
    processor: Any = None,
    choose: int = COMMON,
    confirm: int | None = 1000,
    seed: int = 0,
    max_evaluations: int = MAX_EVALUATIONS,
    time_limit: float | None = None,
    front: Sequence[float] = BUDGETS,
    out: str | Path | None = None,
    batch_size: int = 16,
    progress: bool = True,
    **options: Any,
) -> tuple[MergeConfig, Results]:
    """Find the merge that changes a model's outputs least within a budget; labels are not needed.

    Example:
        config, results = hf_tome.tune("facebook/deit-small-patch16-224", "photographs/", budget=0.5)

    Args:
        model: a Hub id, a folder, or a model object.
        data: a folder of images (`<split>/<class>/<file>` where they have labels), a Hub id, or a `datasets.Dataset`
            with a column `image`.
        budget: the share of the unmerged model's cost that may be left, in (0, 1]; 0.5 by default.
        max_drop: instead of a budget, the points that may be lost of accuracy (without labels: the percentage of the
            samples whose class may change); the strongest of the front that holds it on the confirming samples.
        by: what the budget is of: `"gflops"` (multiply-adds, matching counted) or measured `"time"` on this device.
        sure: the upper end of the drop's 95 % interval must be within `max_drop`, not the drop alone.
        methods: merging methods to choose among.
        image_size: `"free"` to try smaller images too.
        task: of the data that have labels (see `hf-tome eval`).
        processor: of a model object; by default the one saved where the model came from.
        choose, confirm: how many samples to choose by, and how many others to confirm on.
        seed: for the draw of the samples.
        max_evaluations, time_limit: passes over the samples to choose by, and seconds that these may take.
        front: the other budgets that are searched.
        out: folder for `merge_config.json`, the results, and what is needed to resume.
        batch_size: samples in a batch.
        progress: show a bar on a terminal or in a notebook.
        options: others of `JobOptions`, such as `split`, `limit`, `device` and `dtype`.

    Returns:
        The config, and the results on the confirming samples, beside what else costs as much; `results.run["tuned"]`
        has the whole front.

    Raises:
        ValueError: see `tune_to_budget`.
    """
    if budget is not None and max_drop is not None:
        raise ValueError("There are both a `budget` and a `max_drop`; the first is met, the second held. Give one.")
    wanted = Budget(0.5 if budget is None else budget, by, max_drop, sure)
    folder = None if out is None else Path(out)
    job = _job(model, data, task, processor, options)
    with _bar(progress) as show:
        config, results = tune_to_budget(
            job,
            wanted,
            methods=methods,
            image_size=image_size,
            choose=choose,
            confirm=confirm,
            seed=seed,
            max_evaluations=max_evaluations,
            time_limit=time_limit,
            front=front,
            out=folder,
            batch_size=batch_size,
            on_trial=show,
        )
    if folder is not None:
        save(config, results, folder)
    return config, results


def save(config: MergeConfig, results: Results, folder: Path) -> None:
    """Write the config, the results and the front into a folder."""
    config.save_pretrained(folder)
    write_report(results, folder)
    lines = ["| budget | config | divergence | share of the GFLOPs |", "|---|---|---:|---:|"]
    for point in results.run["tuned"]["front"]:
        share = "-" if point["share"] is None else f"{point['share']:.3f}"
        lines.append(f"| {point['budget']:g} | {point['name']} | {point['divergence']:.4f} | {share} |")
    write_whole(folder / "front.md", "\n".join(lines) + "\n")


def job_with_or_without_labels(task: str, options: JobOptions) -> Job:
    """Return the task's job, or that of the images alone where there are no labels, or none that fit the model.

    Raises:
        ValueError, OSError: there are no images, or no such model.
    """
    try:
        return build_job(task, options)
    except (LabelError, DataError) as error:
        if task != IMAGE_TASK or not Path(options.data).expanduser().is_dir():
            raise
        try:
            job = unlabelled_images(options)
        except DataError:
            raise error from None
        note = f"tuned without labels: {str(error).strip().splitlines()[0]}"
        logger.warning("%s", note)
        job.settings = {**job.settings, "notes": [*job.settings.get("notes", ()), note]}
        job.options = options
        return job


def _job(model: Any, data: Any, task: str, processor: Any, options: dict[str, Any]) -> Job:
    if isinstance(model, (str, Path)) and isinstance(data, (str, Path)):
        return job_with_or_without_labels(task, JobOptions(str(model), str(data), **options))
    if isinstance(data, (str, Path)):
        source = getattr(model, "name_or_path", "")
        job = job_with_or_without_labels(task, JobOptions(source, str(data), **options))
        job.model = model
        return job
    import datasets
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from ..data.splits import open_image, undecoded

    if not isinstance(data, datasets.Dataset) or "image" not in data.column_names:
        raise TypeError(
            f"`data` is a {type(data).__name__}; it takes a folder, a Hub id or a `datasets.Dataset` with a column "
            "'image'."
        )
    if isinstance(model, (str, Path)):
        processor = processor or AutoImageProcessor.from_pretrained(str(model), trust_remote_code=False)
        model = AutoModelForImageClassification.from_pretrained(str(model), trust_remote_code=False).eval()
    if processor is None:
        processor = AutoImageProcessor.from_pretrained(model.name_or_path, trust_remote_code=False)
    rows = undecoded(data, "Image")
    samples = UnlabelledImages("in memory", str(data.split or "data"), rows, "image", open_image)
    return unlabelled_job(model, processor, samples, type(model).__name__)


def _bar(shown: bool) -> AbstractContextManager[Progress | None]:
    import sys

    if not shown or not (sys.stderr.isatty() or "ipykernel" in sys.modules):
        return nullcontext()
    return _Bar()


class _Bar:
    """A bar of the evaluations."""

    def __enter__(self) -> Progress:
        from tqdm.auto import tqdm

        self.bar = tqdm(desc="tune", unit="evaluations", leave=False)

        def update(done: int, total: int, name: str) -> None:
            self.bar.total = total
            self.bar.set_postfix_str(name[:60], refresh=False)
            self.bar.update(done - self.bar.n)

        return update

    def __exit__(self, *error: object) -> None:
        self.bar.close()

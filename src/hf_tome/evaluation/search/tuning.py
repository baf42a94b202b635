"""What `hf_tome.tune` and `hf-tome tune --budget` share: a job with or without labels, and what is written."""

from __future__ import annotations

import logging
from pathlib import Path

from ...config import MergeConfig
from ...files import write_whole
from ..data.labels import LabelError
from ..data.splits import DataError
from ..job import Job
from ..options import JobOptions
from ..reporting.writers import markdown_table
from ..store.results import Results
from ..tasks.registry import build_job
from ..tasks.unlabelled import TASK_NAME, unlabelled_images
from .budget import controls, trials, tuning_run
from .budget.sensitivity import plot_sensitivities

logger = logging.getLogger(__name__)


def save(config: MergeConfig, results: Results, folder: Path) -> None:
    """Write the config and the front into a folder."""
    config.save_pretrained(folder)
    tuned, rows = results.run["tuned"], []
    for point in tuned["front"]:
        seconds = "-" if point["time"] is None else f"{point['time']:.3f}"
        numbers = (f"{point['divergence']:.4f}", f"{point['share']:.3f}", seconds)
        rows.append([f"{point['budget']:g}", point["name"], *numbers])
    columns = ("budget", "config", "divergence", f"share of the {tuned['unit']}", "share of the time")
    if tuned["sensitivities"]:
        plot_sensitivities(tuned["sensitivities"], folder / "blocks.png")
    write_whole(folder / "front.md", markdown_table(columns, rows, num_left=2))


def forget(folder: Path) -> None:
    """Delete what an earlier run of tuning kept in a folder to resume from; the samples that it confirmed on stay."""
    for name in (trials.FILE, controls.FILE, tuning_run.FILE):
        (folder / name).unlink(missing_ok=True)


def job_with_or_without_labels(task: str, options: JobOptions) -> Job:
    """Return the task's job, or that of the images alone where there are no labels, or none that fit the model.

    Raises:
        ValueError, OSError: there are no images, or no such model.
    """
    try:
        return build_job(task, options)
    except (LabelError, DataError) as error:
        if task != TASK_NAME or (options.rows is None and not Path(options.data).expanduser().is_dir()):
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

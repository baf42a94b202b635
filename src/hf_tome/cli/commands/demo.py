"""`hf-tome demo`: what merging costs and saves, on handwritten digits that ship with scikit-learn; no network."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common import (
    BatchSizeOption,
    DebugOption,
    DeviceOption,
    Format,
    FormatOption,
    example,
    parse_configs,
    pick_batch_size,
    pick_device,
    progress,
    show_results,
    write_results,
)
from .generate import show_pictures

if TYPE_CHECKING:
    from PIL import Image

    from ...demo.digits_demo import Demo
    from ...evaluation.job import Job
    from ...evaluation.store.results import Results

EXAMPLE = example(
    "hf-tome demo --task all --out demo/",
    "prints a table for each of eight small models in about five minutes, and writes report.md, results.json and "
    "pictures to a folder for each in demo/.",
)

ALL = "all"
DRAWN = "class-to-image"
"""The task of the small diffusion model, which draws digits instead of reading them."""


def demo_command(
    task: Annotated[
        str,
        typer.Option(
            help="What to show: image-classification, video-classification, zero-shot-image-classification (CLIP and "
            "SigLIP), semantic-segmentation (DINOv2 with UPerNet), visual-question-answering (LLaVA), text-cache "
            "(a language model), class-to-image (a diffusion model), or all."
        ),
    ] = "image-classification",
    out: Annotated[Path, typer.Option(help="Folder to write the reports and the pictures to.")] = Path("demo"),
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate at most N samples of each.")] = None,
    batch_size: BatchSizeOption = 32,
    device: DeviceOption = "auto",
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Evaluate the small models that ship with the package on digits and texts held out from their training.

    Unmerged, with ToMe at several r and with MaMe at several thresholds. Digits are much simpler than photographs, so
    merging costs less here than it does there; `hf-tome eval` takes real models and data.
    """
    device = pick_device(device)
    if task == DRAWN:
        show_pictures(_draw(out, limit, pick_batch_size(batch_size, device), device), format)
        return
    chosen = _choose(task)
    results = {}
    for name, demo in chosen.items():
        folder = out / name if len(chosen) > 1 else out
        results[name] = _show(name, demo, folder, limit, pick_batch_size(batch_size, device), device)
        if format is Format.table:
            show_results(results[name], format)
    if format is not Format.table:
        _show_together(results, format)
    if task == ALL and find_spec("diffusers") is not None:
        drawn = _draw(out / DRAWN, limit, pick_batch_size(batch_size, device), device)
        if format is Format.table:
            show_pictures(drawn, format)


def _draw(out: Path, limit: int | None, batch_size: int, device: str) -> dict[str, Any]:
    """Draw digits unmerged and merged, and write the pictures, a contact sheet and what is read in them."""
    from ...demo.digits_drawn import CONFIGS, PICTURES, digits_job
    from ...evaluation.pictures import compare_pictures

    job = digits_job(limit or PICTURES, device=device)
    with progress(DRAWN) as update:
        return compare_pictures(job, parse_configs(CONFIGS), out, batch_size=batch_size, on_progress=update)


def _choose(task: str) -> dict[str, Demo]:
    """Return the demos of a task.

    Raises:
        ValueError: there is none.
    """
    from ...demo.digits_demo import DEMOS

    chosen = {name: demo for name, demo in DEMOS.items() if task in (ALL, demo.task)}
    if not chosen:
        tasks = ", ".join(dict.fromkeys(demo.task for demo in DEMOS.values()))
        raise ValueError(f"There is no demo of the task {task!r}; known are {tasks}, and {ALL} for all of them.")
    return chosen


def _show(name: str, demo: Demo, out: Path, limit: int | None, batch_size: int, device: str) -> Results:
    """Run one demo, and write its report and pictures."""
    from tempfile import TemporaryDirectory

    from ...evaluation.running.runner import evaluate

    with TemporaryDirectory() as place:
        job = demo.job(Path(place), limit, device=device)
        with progress(name) as update:
            results = evaluate(job, parse_configs(demo.configs), batch_size=batch_size, on_progress=update)
        out.mkdir(parents=True, exist_ok=True)
        if demo.drawn:
            draw = demo.picture
            picture = _merged(job, demo) if draw is None else draw(job, demo.pictured, results, demo.drawn)
            picture.save(out / "merged.png")
    write_results(results, out, [("merged.png", demo.caption)] if demo.drawn else [])
    return results


def _merged(job: Job, demo: Demo) -> Image.Image:
    """Draw the first samples: each as the model sees it, and the tokens that each config leaves."""
    from itertools import islice

    from transformers import AutoImageProcessor

    from ...config.text import short_name
    from ...evaluation.data.digits import MODELS
    from ...visualize import compare_sheet, contact_sheet, trace_input

    processor = AutoImageProcessor.from_pretrained(MODELS / demo.model, trust_remote_code=False)
    sheets, titles = [], []
    for sample in islice(job.data, demo.drawn):
        content, title = demo.shown(sample.content)
        traced = [trace_input(job.model, processor, content, config) for config in parse_configs(demo.pictured)]
        sheets.append(compare_sheet(traced, [short_name(text) for text in demo.pictured]))
        titles.append(title)
    return contact_sheet(sheets, 1, titles if any(titles) else None)


def _show_together(results: Mapping[str, Results], form: Format) -> None:
    """Write the results; several as one JSON object by the name of their demo, or as one table with the models."""
    from ...evaluation.reporting.tables import join

    if len(results) == 1:
        show_results(next(iter(results.values())), form)
    elif form is Format.json:
        documents = {name: result.to_dict() for name, result in results.items()}
        sys.stdout.write(json.dumps(documents, indent=2, allow_nan=False) + "\n")
    else:
        show_results(join({result.run["model"]: result for result in results.values()}), form)

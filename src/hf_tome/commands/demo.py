"""`hf-tome demo`: what merging costs and saves, on handwritten digits that ship with scikit-learn; no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
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

if TYPE_CHECKING:
    from PIL import Image

    from ..evaluation.task import Job

EXAMPLE = example(
    "hf-tome demo --out demo/",
    "prints one table in about a minute, and writes report.md, results.json, pareto.png and merged.png to demo/.",
)

CONFIGS = (
    *(f"r={r}" for r in (8, 16, 32, 64, 128)),
    *(f"method=mame,threshold={threshold}" for threshold in (0.9, 0.8, 0.7, 0.5)),
)
PICTURED = ("r=8", "r=16", "r=32", "method=mame,threshold=0.8")
PICTURED_DIGITS = 4


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder to write the report and the pictures to.")] = Path("demo"),
    batch_size: BatchSizeOption = 32,
    device: DeviceOption = "auto",
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Evaluate the small ViT that ships with the package on the digits held out from its training.

    Unmerged, with ToMe at several r and with MaMe at several thresholds. Digits are much simpler than photographs, so
    merging costs less here than it does there; `hf-tome eval` takes real models and data.
    """
    from ..evaluation.imagenet import digits_classification
    from ..evaluation.task import evaluate

    device = pick_device(device)
    job = digits_classification(device)
    batch_size = pick_batch_size(batch_size, device)
    with progress("digits") as update:
        results = evaluate(job, parse_configs(CONFIGS), batch_size=batch_size, on_progress=update)
    out.mkdir(parents=True, exist_ok=True)
    _merged_digits(job).save(out / "merged.png")
    caption = "Held-out digits as the model sees them, and the tokens left after the last block."
    write_results(results, out, [("merged.png", caption)])
    show_results(results, format)


def _merged_digits(job: Job) -> Image.Image:
    """Draw the first digits, one a row: the input, then the tokens that each config leaves."""
    from itertools import islice

    from transformers import AutoImageProcessor

    from ..evaluation.config_text import short_name
    from ..evaluation.digits import MODEL_DIR
    from ..visualize import contact_sheet, merged_image, readable_scale
    from .pictures import trace_image

    processor = AutoImageProcessor.from_pretrained(MODEL_DIR)
    pictures, labels = [], []
    for sample in islice(job.data, PICTURED_DIGITS):
        for text, config in zip(PICTURED, parse_configs(PICTURED)):
            view, sources, grid = trace_image(job.model, processor, sample.content, config)
            scale = readable_scale(view, grid)
            if text == PICTURED[0]:
                pictures.append(view.resize((view.width * scale, view.height * scale), resample=0))
                labels.append("input")
            pictures.append(merged_image(view, sources[-1], grid, scale=scale))
            labels.append(f"{short_name(text)}: {sources[-1].unique().numel()} patch tokens")
    return contact_sheet(pictures, len(PICTURED) + 1, labels)

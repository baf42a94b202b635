"""What `hf-tome generate` writes of its results: a table, a plot, a contact sheet and a card for the Hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..escaping import markdown_text
from ..files import replacing, write_whole
from .reporting.writers import markdown_table
from .variants import UNMERGED

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

SHEET, PLOT, CARD = "sheet.png", "plot.png", "README.md"
SHOWN = 8
"""Pictures of each config on the contact sheet."""

HEADERS = {
    "name": "config",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "right": "read right %",
    "clip": "CLIP score",
    "fid": "FID to unmerged",
    "seconds": "seconds a picture",
    "speedup": "speed-up",
    "gflops": "GFLOPs a step (multiply-adds)",
    "memory_mib": "peak MiB",
}


def known_columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the keys of `HEADERS` that any row has a value of."""
    return [key for key in HEADERS if any(row.get(key) is not None for row in rows)]


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table of what is known."""
    columns = known_columns(rows)
    cells = (["-" if row.get(key) is None else _cell(row[key]) for key in columns] for row in rows)
    return markdown_table([HEADERS[key] for key in columns], cells, num_left=1)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else markdown_text(value)


def contact_sheet_of(drawn: dict[str, Tensor], num_pictures: int) -> Image.Image:
    """Return the first pictures, a row a config, under its name."""
    from PIL import Image

    from ..visualize import contact_sheet

    images, labels = [], []
    for name, pictures in drawn.items():
        for number, picture in enumerate(pictures[:SHOWN]):
            array = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
            scale = max(1, 96 // array.shape[1])
            images.append(Image.fromarray(array).resize((array.shape[1] * scale, array.shape[0] * scale), 0))
            labels.append(name if number == 0 else "")
    return contact_sheet(images, min(SHOWN, num_pictures), labels)


def draw_plot(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Write PSNR against the speed-up, or against GFLOPs where that is not known, as PNG; False if not."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("%s is not drawn: that needs matplotlib, pip install 'hf_tome[eval]'.", path)
        return False
    merged = [row for row in rows if row.get("psnr") is not None]
    key, label = next(
        (
            (key, label)
            for key, label in (("speedup", "speed-up (more is better)"), ("gflops", HEADERS["gflops"]))
            if any(row.get(key) is not None for row in merged)
        ),
        (None, ""),
    )
    if key is None:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.add_subplot()
    for row in merged:
        if row.get(key) is not None:
            axis.plot(row[key], row["psnr"], "o")
            axis.annotate(row["name"], (row[key], row["psnr"]), (4, 4), textcoords="offset points", fontsize=7)
    axis.set(xlabel=label, ylabel="PSNR to the unmerged picture, dB")
    axis.margins(x=0.3, y=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
    return True


def write_card(results: dict[str, Any], out: Path, *, has_plot: bool) -> None:
    """Write README.md for the Hub: what was drawn, how, and what merging cost and saved."""
    from huggingface_hub import ModelCardData

    name = results["model"]
    is_folder = Path(name).exists()  # nobody else has the folders of this machine
    task = "text-to-image" if results["has_prompts"] else "unconditional-image-generation"
    metadata = ModelCardData(
        library_name="hf_tome",
        base_model=name if name.count("/") == 1 and not is_folder else None,
        pipeline_tag=task,
        tags=["token-merging", "diffusers"],
    )
    name = Path(name).name if is_folder else name
    environment, settings = results["environment"], results["settings"]
    config = next((row["name"] for row in results["rows"] if row["name"] != UNMERGED), "ratio=0.5")
    lines = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {markdown_text(name)} with token merging\n",
        "Tokens merge around the denoiser's blocks and are given back behind each, by `hf_tome`, without training:\n",
        "```python\nimport hf_tome\nfrom hf_tome.config import parse_config\n",
        f'hf_tome.apply(pipe, parse_config("{config}"))\n```\n',
        f"{results['pictures']} pictures, each compared with the unmerged one of the same noise; seconds are medians "
        "by the wall clock.\n",
        to_markdown(results["rows"]),
        f"![contact sheet]({SHEET})\n",
        *([f"![PSNR and speed-up]({PLOT})\n"] if has_plot else []),
        f"Settings: {', '.join(f'{key} {value}' for key, value in settings.items()) or 'the defaults'}. Measured on "
        f"{environment['device_name']} with {', '.join(f'{n} {v}' for n, v in environment['packages'].items() if v)}.",
    ]
    write_whole(out / CARD, "\n".join(lines) + "\n")

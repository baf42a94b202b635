"""Pictures of the same prompts and noise, unmerged and with each merge config: drawing, resuming, comparing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..api import merged, remove
from ..config import MergeConfig
from ..config.text import format_config
from ..escaping import markdown_text
from ..files import replacing, write_whole
from ..inspection.reports import report
from .environment import describe_environment
from .metrics.pictures import psnr, ssim
from .picture_report import PLOT, SHEET, SHOWN, contact_sheet_of, draw_plot, to_markdown, write_card
from .variants import UNMERGED

if TYPE_CHECKING:
    from PIL import Image

SETTINGS, RESULTS, PICTURES = "settings.json", "results.json", "pictures"
Scores = dict[str, float]


@dataclass
class PictureJob:
    """What is drawn, and how it is judged.

    Attributes:
        name: of the model.
        model: what merging is applied to, a pipeline or a denoiser.
        prompts: one a picture, in words or as the name of a class.
        draw: draws the pictures of these numbers, each from a noise of its own number.
        score: from pictures (N, C, H, W) from 0 to 1 and their numbers to what is judged of them without a reference.
        settings: what else the pictures depend on.
        device: where it runs.
        has_prompts: whether the prompts are words, as a pipeline takes them.
    """

    name: str
    model: Any
    prompts: Sequence[str]
    draw: Callable[[list[int]], list[Image.Image]]
    score: Callable[[Tensor, list[int]], Scores] = lambda pictures, numbers: {}
    settings: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    has_prompts: bool = False


def compare_pictures(
    job: PictureJob,
    configs: Sequence[MergeConfig],
    out: Path,
    *,
    batch_size: int = 1,
    fid: Callable[[Tensor, Tensor], float] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Draw every prompt unmerged and with each config, and write pictures, a contact sheet and results to a folder.

    Each picture is written once it is drawn; a run that was stopped resumes from those that exist. The model is
    unmerged afterwards.

    Args:
        job: what is drawn.
        configs: the merge configs.
        out: the folder.
        batch_size: pictures at once.
        fid: the distance of two sets of pictures, if it is to be told.
        on_progress: called with the pictures done and in all.

    Raises:
        ValueError: the folder holds pictures of other settings.
    """
    names = [UNMERGED, *(format_config(config) for config in configs)]
    _check_settings(job, out)
    total, rows, drawn = len(names) * len(job.prompts), [], {}
    unmerged: Tensor | None = None
    remove(job.model)
    for place, (name, config) in enumerate(zip(names, [None, *configs])):

        def count(some: int, done: int = place * len(job.prompts)) -> None:
            on_progress(done + some, total)

        folder = out / PICTURES / f"{place:02}-{_slug(name)}"
        with nullcontext() if config is None else merged(job.model, config):
            seconds = _draw_all(job, folder, batch_size, count)
            merge_report = None if config is None else report(job.model)
        pictures = _read_all(folder, len(job.prompts))
        unmerged = pictures if unmerged is None else unmerged
        drawn[name] = pictures[:SHOWN].clone()  # a slice would keep all of them in memory
        rows.append({"name": name, "seconds": seconds, **_row(job, pictures, unmerged, fid)})
        if merge_report is not None and seconds is not None:
            rows[-1]["levels"] = [str(tower) for tower in merge_report.towers]
            if merge_report.gflops is not None:
                rows[-1]["gflops"], rows[0]["gflops"] = merge_report.gflops, merge_report.gflops_unmerged
    _add_speedups(rows)
    results = {
        "model": job.name,
        "settings": job.settings,
        "pictures": len(job.prompts),
        "has_prompts": job.has_prompts,
        "environment": describe_environment(job.device),
        "rows": rows,
    }
    contact_sheet_of(drawn, len(job.prompts)).save(out / SHEET)
    write_whole(
        out / "report.md", f"# {markdown_text(job.name)}, merged\n\n{to_markdown(rows)}\n![contact sheet]({SHEET})\n"
    )
    write_card(results, out, has_plot=draw_plot(rows, out / PLOT))
    write_whole(out / RESULTS, json.dumps(results, indent=2) + "\n")
    return results


def _check_settings(job: PictureJob, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({"model": job.name, "prompts": list(job.prompts), **job.settings}, indent=2) + "\n"
    path = out / SETTINGS
    if path.exists() and path.read_text(encoding="utf-8") != settings:
        raise ValueError(
            f"{out} holds pictures of another model, other prompts or other settings (see {SETTINGS} there). Choose "
            "another folder, or delete it."
        )
    write_whole(path, settings)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".=" else "-" for letter in name)[:100]


def _draw_all(job: PictureJob, folder: Path, batch_size: int, on_progress: Callable[[int], None]) -> float | None:
    """Draw what is missing in a folder, and return the median of the seconds a picture; `None` where nothing was."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(len(job.prompts)) if not (folder / f"{number:05}.png").exists()]
    seconds = []
    if job.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    for first in range(0, len(missing), batch_size):
        numbers = missing[first : first + batch_size]
        start = time.perf_counter()
        images = job.draw(numbers)
        if job.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds += [(time.perf_counter() - start) / len(numbers)] * len(numbers)
        for number, image in zip(numbers, images):
            with replacing(folder / f"{number:05}.png") as unfinished:  # a picture is there whole, or not at all
                image.save(unfinished, format="PNG")
        on_progress(len(job.prompts) - len(missing) + first + len(numbers))
    return float(np.median(seconds)) if seconds else None


def _read_all(folder: Path, count: int) -> Tensor:
    """Return the pictures of a folder, (N, C, H, W) from 0 to 1."""
    from PIL import Image

    pictures = [np.asarray(Image.open(folder / f"{number:05}.png").convert("RGB")) for number in range(count)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _row(
    job: PictureJob, pictures: Tensor, unmerged: Tensor, fid: Callable[[Tensor, Tensor], float] | None
) -> dict[str, Any]:
    row: dict[str, Any] = dict(job.score(pictures, list(range(len(pictures)))))
    if pictures is not unmerged:
        decibels = psnr(pictures, unmerged)
        row["psnr"], row["ssim"] = decibels.mean().item(), ssim(pictures, unmerged).mean().item()
        if fid is not None:
            row["fid"] = fid(unmerged, pictures)
    if job.device.startswith("cuda"):
        row["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return row


def _add_speedups(rows: list[dict[str, Any]]) -> None:
    base = rows[0]["seconds"]
    for row in rows:
        if base is not None and row["seconds"] is not None:
            row["speedup"] = base / row["seconds"]


def clip_scorer(folder: str, prompts: Sequence[str], device: str) -> Callable[[Tensor, list[int]], Scores]:
    """Return a function that tells the CLIP score: the mean of 100 times the cosine of picture and prompt."""
    from transformers import AutoProcessor, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval().to(device)
    processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)

    @torch.inference_mode()
    def score(pictures: Tensor, numbers: list[int]) -> Scores:
        values = []
        for picture, number in zip(pictures, numbers):
            array = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
            inputs = processor(
                text=[prompts[number]], images=[array], return_tensors="pt", padding=True, truncation=True
            ).to(device)
            out = model(**inputs)
            cosine = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
            values.append(100 * cosine.clamp(min=0).item())
        return {"clip": float(np.mean(values))}

    return score


def frechet_distance(first: Tensor, second: Tensor, feature: Any = 2048) -> float:
    """Return the Frechet inception distance of two sets of pictures (N, 3, H, W) from 0 to 1, by torchmetrics.

    Its Inception network is a download of torch-fidelity; `feature` may be a network of one's own.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=feature, normalize=True)
    metric.update(first, real=True)
    metric.update(second, real=False)
    return float(metric.compute())

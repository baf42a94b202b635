"""`hf-tome generate`: the same prompts and noise, drawn by a diffusion model unmerged and merged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import common
from ..common import Format, example
from ..tables import write_rows

if TYPE_CHECKING:
    from ...evaluation.pictures import PictureJob

EXAMPLE = example(
    "hf-tome generate --model PIPELINE --prompts prompts.txt --config ratio=0.5 \\\n"
    "    --config ratio=0.5,modules=block --out pictures/",
    "draws each line of prompts.txt unmerged and with each config, from the same noise, and writes the pictures, a "
    "contact sheet, a plot, results.json, report.md and a card for the Hub (README.md) to pictures/. The same command "
    "resumes a run that was stopped.",
)
DIGITS = "digits"


def generate_command(
    out: Annotated[Path, typer.Option(help="Folder to write pictures and results to.")],
    model: Annotated[
        str, typer.Option(help="Hub id or folder of a pipeline of diffusers, or digits: the small model of the demo.")
    ] = DIGITS,
    prompts: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="A file with one prompt a line. The small model takes none: it draws 0 to 9.",
        ),
    ] = None,
    config: common.ConfigsOption = [],  # noqa: B006 (typer copies it)
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Draw N pictures, cycling through the prompts; by default one each."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps; by default the pipeline's.")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Height and width; by default the pipeline's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Picture i starts from the noise of seed + i.")] = 0,
    clip: Annotated[str | None, typer.Option(help="Hub id or folder of a CLIP model, for the CLIP score.")] = None,
    fid: Annotated[bool, typer.Option(help="FID to the unmerged pictures; needs the extra fid.")] = False,
    batch_size: common.BatchSizeOption = 1,
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = common.Dtype.float32,
    format: common.FormatOption = Format.table,
    debug: common.DebugOption = False,
) -> None:
    """Draw the same pictures unmerged and with each merge config, and tell what that costs and saves.

    PSNR and SSIM are to the unmerged picture of the same noise; seconds a picture are the median by the wall clock.
    """
    configs = common.parse_configs(config)
    if (model == DIGITS) != (prompts is None):
        raise typer.BadParameter(
            "--prompts is a file of prompts for a pipeline; the small model (--model digits) takes none."
        )

    from ...evaluation.pictures import clip_scorer, compare_pictures, frechet_distance

    where = common.pick_device(device)
    if prompts is None:
        from ...demo.digits_drawn import PICTURES, digits_job

        job = digits_job(count or PICTURES, seed=seed, device=where, **({} if steps is None else {"steps": steps}))
    else:
        lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{prompts} has no prompts; it takes one a line.")
        wanted = [lines[number % len(lines)] for number in range(count or len(lines))]
        job = pipeline_job(model, wanted, seed=seed, steps=steps, size=size, device=where, dtype=dtype.value)
    if clip is not None:
        job.score = clip_scorer(clip, job.prompts, where)
    with common.progress(job.name) as update:
        results = compare_pictures(
            job,
            configs,
            out,
            batch_size=common.pick_batch_size(batch_size, where),
            fid=frechet_distance if fid else None,
            on_progress=update,
        )
    show_pictures(results, format)


def pipeline_job(
    model: str, prompts: list[str], *, seed: int, steps: int | None, size: int | None, device: str, dtype: str
) -> PictureJob:
    """Load a pipeline, and return the job that draws its prompts, picture i from the noise of seed `seed + i`."""
    import torch
    from diffusers import DiffusionPipeline

    from ...evaluation.pictures import PictureJob

    pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=getattr(torch, dtype)).to(device)
    pipe.set_progress_bar_config(disable=True)
    values = {"num_inference_steps": steps, "height": size, "width": size}
    options = {name: value for name, value in values.items() if value is not None}

    def draw(numbers: list[int]) -> list:
        generators = [torch.Generator().manual_seed(seed + number) for number in numbers]
        return pipe(prompt=[prompts[number] for number in numbers], generator=generators, **options).images

    settings = {"seed": seed, "dtype": dtype, **options}
    return PictureJob(model, pipe, prompts, draw, settings=settings, device=device, has_prompts=True)


def show_pictures(results: dict, form: Format) -> None:
    """Write the results to standard output: as JSON all of them, else what is known of each row."""
    from ...evaluation.picture_report import HEADERS, known_columns

    rows = results["rows"]
    if form is not Format.json:
        headers = {key: key if form is Format.csv else HEADERS[key] for key in known_columns(rows)}
        rows = [{header: row.get(key) for key, header in headers.items()} for row in rows]
    write_rows(**{**results, "rows": rows}, form=form)

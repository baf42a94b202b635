"""What the commands share: options, configs from text, progress on standard error, results on standard output."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..config import MergeConfig
    from ..evaluation.store.results import Results


class Format(StrEnum):
    """How results are written to standard output."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


class Dtype(StrEnum):
    """What the model is run in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


PLOT = "pareto.png"

FormatOption = Annotated[Format, typer.Option("--format", help="How to write the result to standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="On an error, show the traceback.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: cuda where there is one.")]
MediaLimitsOption = Annotated[
    str,
    typer.Option(
        metavar="NAME=VALUE,...",
        help="Limits on the sizes of images, clips and recordings other than the defaults, such as "
        "image_pixels=100000000: file_bytes, image_pixels, aspect_ratio, frame_pixels, frames, clip_pixels, "
        "recording_seconds, decoding_seconds. Larger ones are refused before they are decoded.",
    ),
]
DtypeOption = Annotated[Dtype, typer.Option(help="Data type of the weights and the computation.")]


def _batch_size(value: str | int) -> int:
    """Read a number of at least 1, or `auto`, which becomes 0."""
    if value == "auto":
        return 0
    if not str(value).isdigit() or int(value) < 1:
        raise typer.BadParameter(f"{value!r} is not a number of at least 1, or auto.")
    return int(value)


BatchSizeOption = Annotated[
    int,
    typer.Option(
        parser=_batch_size,
        metavar="INTEGER|auto",
        help="Samples in a batch, or auto: 16 on a CPU and 256 on a GPU. Where a GPU's memory is too small, the batch "
        "is halved until it fits.",
    ),
]
ModelOption = Annotated[str, typer.Option(help="Hub id or folder of the model, or a shipped one: digits-vit, ...")]
CONFIG_HELP = (
    "A merge config, repeatable: r=8, r=[0,8,8], r=(16,-1.0), method=mame,threshold=0.8,layers=0-7, or "
    "the path of a merge_config.json."
)
ConfigsOption = Annotated[
    list[str], typer.Option("--config", help=f"{CONFIG_HELP} The unmerged model always runs too.")
]


def example(command: str, says: str) -> str:
    """Return the epilog of a command's help: one worked example."""
    return f"\b\nExample:\n  {command}\n\nIt {says}"  # \b keeps the lines of a paragraph as they are


def parse_configs(texts: Sequence[str]) -> list[MergeConfig]:
    """Return the merge configs that the `--config` options say."""
    from ..config import parse_config

    return [parse_config(text) for text in texts]


def pick_batch_size(size: int, device: str) -> int:
    """Return the batch size that `--batch-size` means."""
    return size or (16 if device == "cpu" else 256)


def pick_device(name: str) -> str:
    """Return the device that `--device` means; for `auto` each process of `torchrun` gets a GPU of its own.

    Raises:
        ValueError: it is none that torch knows, or one that cannot be used here.
    """
    import torch

    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {name!r}; it takes cpu, cuda, cuda:1, ... or auto.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"There is no device {name!r}: torch sees {torch.cuda.device_count()} GPUs. Use --device cpu."
        )
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own way to say that it is not there
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"Device {name!r} cannot be used here ({reason}). Use --device cpu.") from error
    return name


def is_main_process() -> bool:
    """Tell whether this process, of those that `torchrun` started, is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def forget_samples(folder: Path | None) -> None:
    """Delete what earlier runs left of samples in a folder."""
    from ..evaluation.store.run_store import FILES

    for file in sorted(folder.glob(FILES)) if folder is not None and is_main_process() else ():
        file.unlink()


def show_results(results: Results, form: Format) -> None:
    """Write the results to standard output."""
    from ..evaluation.reporting.tables import FORMATS

    sys.stdout.write(FORMATS[form.value](results))


def say(text: str) -> None:
    """Tell somebody at a terminal what happened, on standard error."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def publish(results: Results, form: Format, folder: Path | None) -> None:
    """Show the results, and write them to the folder if there is one; the plot comes last, as it matters least."""
    if folder is not None:
        _write_report(results, folder)
    show_results(results, form)
    sys.stdout.flush()
    if folder is not None:
        _plot(results, folder)


def write_results(results: Results, folder: Path, pictures: Sequence[tuple[str, str]] = ()) -> None:
    """Write `results.json`, `report.md` and `pareto.png`; `pictures` are further files there, with captions."""
    _write_report(results, folder, pictures)
    _plot(results, folder)


def _write_report(results: Results, folder: Path, pictures: Sequence[tuple[str, str]] = ()) -> None:
    from ..evaluation.reporting.plots import panels
    from ..evaluation.reporting.tables import write_report

    drawn = [(PLOT, "Accuracy against compute and against speed, a point a config.")] if panels(results) else []
    write_report(results, folder, [*drawn, *pictures])
    say(f"Wrote {', '.join(['report.md', 'results.json', *(name for name, _ in [*drawn, *pictures])])} to {folder}")


def _plot(results: Results, folder: Path) -> None:
    from ..evaluation.reporting.plots import panels, plot_pareto

    (folder / PLOT).unlink(missing_ok=True)
    if panels(results):
        plot_pareto(results, folder / PLOT)


class ProgressLines:
    """A line on standard error every 30 s, for logs."""

    EVERY = 30.0

    def __init__(self, description: str):
        self.description = description
        self.next = time.monotonic() + self.EVERY

    def update(self, done: int, total: int) -> None:
        """Write a line if the last one is long ago."""
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + self.EVERY
        share = f" of {total} ({done / total:.0%})" if total else ""
        print(f"{self.description}: {done}{share}", file=sys.stderr, flush=True)


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left on standard error, or a line every 30 s where that is no terminal.

    Yields `update(done, total)`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    shown = sys.stderr.isatty() and is_main_process()
    lines = ProgressLines(description) if is_main_process() and not shown else None
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task(description, total=None, rate="")

        def update(done: int, total: int) -> None:
            if lines is not None:
                lines.update(done, total)
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total or None, rate=f"{speed:.1f}/s" if speed else "")

        yield update

"""What the commands share: options, configs from text, progress on standard error, results on standard output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..config import MergeConfig
    from ..evaluation.task import Results


class Format(str, Enum):
    """How results are written to standard output."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


class Dtype(str, Enum):
    """What the model is run in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


FormatOption = Annotated[Format, typer.Option("--format", help="How to write the result to standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="On an error, show the traceback.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: cuda where there is one.")]
DtypeOption = Annotated[Dtype, typer.Option(help="What the model is run in.")]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Images in a batch.")]
ConfigsOption = Annotated[
    list[str],
    typer.Option(
        "--config",
        help="A merge config, many times if you like: r=8, r=[0,8,8], r=(16,-1.0), "
        "method=mame,threshold=0.8,layers=0-7, or the path of a merge_config.json. The unmerged model always "
        "runs too.",
    ),
]


def example(command: str, says: str) -> str:
    """Return the epilog of a command's help: one worked example."""
    return f"\b\nExample:\n  {command}\n\nIt {says}"  # \b keeps the lines of a paragraph as they are


def parse_configs(texts: Sequence[str]) -> list[MergeConfig]:
    """Return the merge configs that the `--config` options say."""
    from ..evaluation.config_text import parse_config

    return [parse_config(text) for text in texts]


def pick_device(name: str) -> str:
    """Return the device that `--device` means.

    Raises:
        ValueError: it is none that torch knows, or a GPU that is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {name!r}; it takes cpu, cuda, cuda:1, ... or auto.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"There is no device {name!r}: torch sees {torch.cuda.device_count()} GPUs. Use --device cpu."
        )
    return name


def show_results(results: Results, form: Format) -> None:
    """Write the results to standard output."""
    from ..evaluation.output import FORMATS

    sys.stdout.write(FORMATS[form.value](results))


def say(text: str) -> None:
    """Tell somebody at a terminal what happened, on standard error."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def write_results(results: Results, folder: Path, pictures: Sequence[tuple[str, str]] = ()) -> None:
    """Write `results.json`, `report.md` and `pareto.png`; `pictures` are further files there, with captions."""
    from ..evaluation.output import write_report
    from ..evaluation.plots import plot_pareto

    pareto = ("pareto.png", "Top-1 accuracy against compute and against speed, a point a config.")
    write_report(results, folder, [pareto, *pictures])
    plot_pareto(results, folder / pareto[0])
    say(f"Wrote {', '.join(['report.md', 'results.json', 'pareto.png', *(name for name, _ in pictures)])} to {folder}")


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left on standard error, if that is a terminal; yields `update(done, total)`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(description, total=None, rate="")

        def update(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, total=total or None, rate=f"{speed:.1f} images/s" if speed else "")

        yield update

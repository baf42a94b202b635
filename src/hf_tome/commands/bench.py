"""`hf-tome bench`: how fast merging makes a model, and how fast it could."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common
from .common import Dtype, Format, example

if TYPE_CHECKING:
    from ..benchmark import Benchmark

EXAMPLE = example(
    "hf-tome bench --model facebook/deit-tiny-patch16-224 --config r=8 --config r=16 --batch-size 64",
    "times the model unmerged, merged and as the slice oracle in turns, on random images, and prints median and "
    "quartiles of the paired ratios. The oracle runs the same blocks on plainly cut tokens: the limit of any merging.",
)

COLUMNS = ("config", "tokens", "GFLOPs", "images/s", "merged/s", "speed-up", "oracle", "share", "MiB", "merged MiB")


def bench_command(
    model: common.ModelOption,
    config: common.ConfigsOption = [],  # noqa: B006 (typer copies it)
    batch_size: common.BatchSizeOption = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each; on a busy machine take more.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed runs of each before.")] = 2,
    clock: Annotated[str, typer.Option(help="wall, or process: processor time, for a busy machine.")] = "wall",
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = Dtype.float32,
    format: common.FormatOption = Format.table,
    debug: common.DebugOption = False,
) -> None:
    """Time a model unmerged, merged and as the slice oracle, interleaved; says why if there is no speed-up."""
    configs = common.parse_configs(config or ["r=8"])

    from ..benchmark import benchmark
    from ..evaluation.environment import describe_environment
    from ..example_inputs import example_inputs

    device = common.pick_device(device)
    loaded = _load(model, device, dtype.value)
    inputs = example_inputs(loaded, common.pick_batch_size(batch_size, device))
    found = []
    with common.progress(f"{len(configs)} configs") as update:
        for done, merge_config in enumerate(configs):
            update(done, len(configs))
            found.append(benchmark(loaded, inputs, merge_config, rounds=rounds, warmup=warmup, clock=clock))
    if format is Format.json:
        values = {"environment": describe_environment(device), "rows": [one.to_dict() for one in found]}
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    sys.stdout.write(WRITERS[format]([_row(one) for one in found]))
    for one in found:
        if one.why is not None:
            print(f"{_row(one)[0]}: {one.why}", file=sys.stderr)


def _load(name: str, device: str, dtype: str) -> Any:
    """Load a model in the class that it was saved as; of one with a text tower, the tower that merges."""
    from operator import attrgetter

    from transformers import AutoConfig

    from ..apply import apply, remove, towers
    from ..config import MergeConfig
    from ..evaluation.source import is_folder
    from ..hub import own_class

    is_folder(name, "model")  # a path that is none would be taken for a Hub id
    model = own_class(AutoConfig.from_pretrained(name)).from_pretrained(name, dtype=dtype).to(device).eval()
    path = towers(apply(model, MergeConfig(r=0)))[0].path if hasattr(model.config, "text_config") else ""
    return attrgetter(path)(remove(model)) if path else model


def _row(found: Benchmark) -> tuple[str, ...]:
    from ..config import MergeConfig
    from ..evaluation.config_text import format_config

    rate, memory = found.images_per_second, found.peak_memory_mib
    return (
        format_config(MergeConfig.from_dict(found.config)),
        f"{found.tokens[0]:.0f} to {found.tokens[1]:.0f}",
        "-" if found.gflops is None else f"{found.gflops_unmerged:.3f} to {found.gflops:.3f}",
        f"{rate['unmerged']:.1f}",
        f"{rate['merged']:.1f}",
        str(found.speedup),
        str(found.oracle_speedup),
        str(found.oracle_share),
        f"{memory['unmerged']:.0f}",
        f"{memory['merged']:.0f}",
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (COLUMNS, *rows)]
    return "\n".join(lines) + "\n"


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    return text.getvalue()


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


WRITERS: dict[Format, Callable[[Sequence[Sequence[str]]], str]] = {
    Format.table: _table,
    Format.csv: _csv,
    Format.md: _markdown,
}

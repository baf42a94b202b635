"""`hf-tome bench`: how fast merging makes a model, and how fast it could."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common
from .common import Dtype, Format, example
from .tables import write_rows

if TYPE_CHECKING:
    from ..profiling.benchmark import Benchmark, Spread

EXAMPLE = example(
    "hf-tome bench --model facebook/deit-tiny-patch16-224 --config r=8 --config r=16 --batch-size 64",
    "times the model unmerged, merged and as the slice oracle in turns, on random images, and prints median and "
    "quartiles of the paired ratios. The oracle runs the same blocks on plainly cut tokens: the limit of any merging.",
)


def bench_command(
    model: common.ModelOption,
    config: common.ConfigsOption = [],  # noqa: B006 (typer copies it)
    batch_size: common.BatchSizeOption = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each; on a busy machine take more.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed runs of each before.")] = 2,
    clock: Annotated[
        str, typer.Option(help="wall, process (processor time), or auto: process on a CPU, wall on a GPU.")
    ] = "auto",
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = Dtype.float32,
    format: common.FormatOption = Format.table,
    debug: common.DebugOption = False,
) -> None:
    """Time a model unmerged, merged and as the slice oracle, interleaved; says why if there is no speed-up."""
    configs = common.parse_configs(config or ["r=8"])

    from ..evaluation.environment import describe_environment
    from ..profiling.benchmark import benchmark
    from ..profiling.example_inputs import example_inputs

    device = common.pick_device(device)
    loaded = _load(model, device, dtype.value)
    inputs = example_inputs(loaded, common.pick_batch_size(batch_size, device))
    found = []
    with common.progress(f"{len(configs)} configs") as update:
        for done, merge_config in enumerate(configs):
            update(done, len(configs))
            found.append(benchmark(loaded, inputs, merge_config, rounds=rounds, warmup=warmup, clock=clock))
    describe = DESCRIBED.get(format, _in_words)
    write_rows([describe(one) for one in found], format, environment=describe_environment(device))
    for one in found:
        for line in (*([one.why] if one.why else []), *one.warnings) if format is not Format.json else ():
            print(f"{_name(one)}: {line}", file=sys.stderr)


def _load(name: str, device: str, dtype: str) -> Any:
    """Load a model in the class that it was saved as; of one with a text tower, the tower that merges."""
    from operator import attrgetter

    from ..api import apply, remove, targets
    from ..config import MergeConfig
    from ..hub.save_load import load_unmerged
    from ..hub.sources import is_folder

    is_folder(name, "model")  # a path that is none would be taken for a Hub id
    model = load_unmerged(name, dtype=dtype).to(device).eval()
    path = targets(apply(model, MergeConfig(r=0)))[0].path if hasattr(model.config, "text_config") else ""
    return attrgetter(path)(remove(model)) if path else model


def _name(found: Benchmark) -> str:
    from ..config import MergeConfig, format_config

    return format_config(MergeConfig.from_dict(found.config))


def _in_words(found: Benchmark) -> dict[str, Any]:
    """Return what a reader compares, each pair and each spread in one cell."""
    rate, memory = found.images_per_second, found.peak_memory_mib
    return {
        "config": _name(found),
        "tokens": f"{found.tokens[0]:.0f} to {found.tokens[1]:.0f}",
        "GFLOPs (MACs)": None if found.gflops is None else f"{found.gflops_unmerged:.3f} to {found.gflops:.3f}",
        "images/s": f"{rate['unmerged']:.1f}",
        "merged/s": f"{rate['merged']:.1f}",
        "speed-up": str(found.speedup),
        "oracle": str(found.oracle_speedup),
        "share": str(found.oracle_share),
        "exact last block": str(found.exact_speedup or "-"),
        "MiB": f"{memory['unmerged']:.0f}",
        "merged MiB": f"{memory['merged']:.0f}",
    }


def _in_numbers(found: Benchmark) -> dict[str, Any]:
    """Return the same as plain numbers, one a cell."""
    rate, memory = found.images_per_second, found.peak_memory_mib
    return {
        "config": _name(found),
        "tokens_in": found.tokens[0],
        "tokens": found.tokens[1],
        "gflops_unmerged": found.gflops_unmerged,
        "gflops": found.gflops,
        "images_per_second_unmerged": rate["unmerged"],
        "images_per_second": rate["merged"],
        **_numbers("speedup", found.speedup),
        **_numbers("oracle_speedup", found.oracle_speedup),
        **_numbers("oracle_share", found.oracle_share),
        **(_numbers("exact_speedup", found.exact_speedup) if found.exact_speedup else {}),
        "peak_memory_mib_unmerged": memory["unmerged"],
        "peak_memory_mib": memory["merged"],
    }


def _numbers(name: str, spread: Spread) -> dict[str, float]:
    return {name: spread.median, f"{name}_low": spread.low, f"{name}_high": spread.high}


DESCRIBED = {Format.json: lambda found: found.to_dict(), Format.csv: _in_numbers}
"""What is written of a benchmark, by the format, where it is not words."""

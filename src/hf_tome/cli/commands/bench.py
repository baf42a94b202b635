"""`hf-tome bench`: how fast merging makes a model, and how fast it could."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import common
from ..common import Dtype, Format, example
from ..tables import write_rows

EXAMPLE = example(
    "hf-tome bench --model facebook/deit-tiny-patch16-224 --config r=8 --config r=16 --batch-size 64",
    "times the model unmerged, merged and as the slice oracle, interleaved, on random images, and prints median and "
    "quartiles of the paired ratios. The oracle runs the same blocks on sliced tokens: the limit of any merging.",
)


def bench_command(
    model: common.ModelOption,
    config: common.ConfigsOption = [],  # noqa: B006 (typer copies it)
    batch_size: common.BatchSizeOption = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each; more on a busy machine.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed warm-up runs of each.")] = 2,
    clock: Annotated[
        str, typer.Option(help="wall, process (processor time), or auto: process on a CPU, wall on a GPU.")
    ] = "auto",
    device: common.DeviceOption = "auto",
    dtype: common.DtypeOption = Dtype.float32,
    format: common.FormatOption = Format.table,
    debug: common.DebugOption = False,
) -> None:
    """Time a model unmerged, merged and as the slice oracle, interleaved; says why if there is no speed-up.

    Of a model with a text tower, the image tower is timed.
    """
    configs = common.parse_configs(config or ["r=8"])

    from ...evaluation.environment import describe_environment
    from ...evaluation.reporting.timings import BenchmarkResults, in_numbers, in_words
    from ...evaluation.sources import image_tower, model_from
    from ...profiling.benchmark import benchmark
    from ...profiling.example_inputs import example_inputs

    device = common.pick_device(device)
    loaded = image_tower(model_from(model, device, dtype.value))
    inputs = example_inputs(loaded, common.pick_batch_size(batch_size, device))
    benchmarks = []
    with common.progress(f"{len(configs)} configs") as update:
        for done, merge_config in enumerate(configs):
            update(done, len(configs))
            benchmarks.append(benchmark(loaded, inputs, merge_config, rounds=rounds, warmup=warmup, clock=clock))
    described = {Format.json: lambda result: result.to_dict(), Format.csv: in_numbers}.get(format, in_words)
    write_rows([described(result) for result in benchmarks], format, environment=describe_environment(device))
    for line in BenchmarkResults(benchmarks).warnings if format is not Format.json else ():
        print(line, file=sys.stderr)

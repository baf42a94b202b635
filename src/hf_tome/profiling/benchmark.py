"""How fast merging makes a model: unmerged, merged and the slice oracle, interleaved in one run.

Runs are interleaved and compared pair by pair, so that a machine that slows down slows all of them, and a ratio's
spread says how far it can be trusted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..api import apply, targets
from ..config import MergeConfig
from ..inspection.reports import TowerReport, report
from ..patching.unwrap import unwrap
from .measure import peak_memory_mib
from .rounds import Spread, available_cores, clock_for, doubt_of_load, doubts, interleave, load_average, ratio
from .slice_oracle import make_exact, make_oracle, shallow_copy

VARIANTS = ("unmerged", "merged", "oracle")


@dataclass(frozen=True)
class Benchmark:
    """What merging gained, and what the most was that it could have gained.

    Attributes:
        config: the merge config's plain values.
        batch_size, rounds: images in a forward pass, and how often each variant ran.
        tokens: tokens into the first block and out of the last one, of the first tower.
        gflops, gflops_unmerged: multiply-adds an image, over all towers, where known.
        seconds: the latency of a forward pass of `"unmerged"`, `"merged"` and `"oracle"`.
        images_per_second: of `"unmerged"` by its median; of the others that times their speed-up.
        peak_memory_mib: weights and the most that was allocated besides (see `measure`).
        speedup, oracle_speedup: over unmerged, of the pairs.
        oracle_share: speed-up as a share of the oracle's, of the pairs.
        exact_speedup: what the unmerged model gains over itself by `exact_last_block` alone, of which merging's
            speed-up holds a part; `None` where merging does not make use of it.
        why: why there is no speed-up to speak of, in one line, or `None`.
        clock: what the seconds are of, `"wall"` or `"process"`.
        warnings: why the speed-up should not be trusted, a line each.
    """

    config: dict[str, Any]
    batch_size: int
    rounds: int
    tokens: tuple[float, float]
    gflops: float | None
    gflops_unmerged: float | None
    seconds: dict[str, Spread]
    images_per_second: dict[str, float]
    peak_memory_mib: dict[str, float]
    speedup: Spread
    oracle_speedup: Spread
    oracle_share: Spread
    exact_speedup: Spread | None
    why: str | None
    clock: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)


@torch.inference_mode()
def benchmark(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    config: MergeConfig,
    *,
    rounds: int = 10,
    warmup: int = 2,
    clock: str = "auto",
    memory: bool = True,
    wrap: Callable[[nn.Module], Any] | None = None,
) -> Benchmark:
    """Measure a model unmerged, merged and as the slice oracle; the model itself is not changed.

    Args:
        model: a transformers model, in the mode and dtype and on the device to be measured.
        inputs: its keyword arguments, on its device; the batch is the first dimension of the first tensor.
        config (`MergeConfig`): what to merge.
        rounds (`int`): timed runs of each variant. On a busy machine take more.
        warmup (`int`): untimed runs of each before.
        clock (`str`): `"wall"`, `"process"` for processor time (see `CLOCKS`), or `"auto"`: processor time on a CPU.
        memory (`bool`): whether to measure peak memory, in one more run of each.
        wrap: e.g. `torch.compile`, called on each variant.

    Raises:
        UnsupportedModelError: merging does not work on this model.
        ValueError: the config does not fit the model, or an unknown clock.
    """
    root = unwrap(model)
    device = next(root.parameters()).device
    clock = clock_for(device, clock)
    load = doubt_of_load(load_average(), available_cores())  # before this process adds to it
    merged = apply(shallow_copy(root), config)
    merged(**inputs)  # tells what MaMe, whose schedule depends on the images, is going to do
    merge_report = report(merged)
    tower_reports = merge_report.towers
    is_exact = any(target.describe().last_queries is not None for target in targets(merged))
    paths = [_path(tower) for tower in tower_reports]
    oracle = make_oracle(
        shallow_copy(root), paths, where=config.where, restore=config.restore, exact_last_block=is_exact
    )
    variants: dict[str, nn.Module] = {"unmerged": shallow_copy(root), "merged": merged, "oracle": oracle}
    exact = make_exact(shallow_copy(root)) if is_exact else None
    if exact is not None:
        variants["exact"] = exact
    runs = {name: _runner(wrap(variant) if wrap else variant, inputs) for name, variant in variants.items()}

    seconds = interleave(runs, rounds, warmup=warmup, clock=clock, device=device)
    batch_size = len(next(iter(inputs.values())))
    rate = batch_size / statistics.median(seconds["unmerged"])
    speedup, oracle_speedup = ratio(seconds, "unmerged", "merged"), ratio(seconds, "unmerged", "oracle")
    merged_gflops, unmerged_gflops = merge_report.gflops, merge_report.gflops_unmerged
    # The multiply-adds are the tower's; what merging projected tokens saves is the language model's.
    allowed = None
    if config.where != "projected" and merged_gflops and unmerged_gflops:
        allowed = unmerged_gflops / merged_gflops
    return Benchmark(
        config=config.to_dict(),
        batch_size=batch_size,
        rounds=rounds,
        tokens=(_path(tower_reports[0])[0], _path(tower_reports[0])[-1]),
        gflops=merged_gflops,
        gflops_unmerged=unmerged_gflops,
        seconds={name: Spread.of(seconds[name]) for name in VARIANTS},
        images_per_second={name: rate * ratio(seconds, "unmerged", name).median for name in VARIANTS},
        peak_memory_mib={name: peak_memory_mib(runs[name], root, device) for name in VARIANTS} if memory else {},
        speedup=speedup,
        oracle_speedup=oracle_speedup,
        oracle_share=ratio(seconds, "oracle", "merged"),
        exact_speedup=None if exact is None else ratio(seconds, "unmerged", "exact"),
        why=why_no_speedup(tower_reports[0], speedup.median, oracle_speedup.median, batch_size, device),
        clock=clock,
        warnings=(*([load] if load else []), *doubts("the merged model", speedup, allowed)),
    )


NO_SPEEDUP = 1.05
"""A speed-up below this gets an explanation."""
FEW_TOKENS = 128
FIXED_COSTS = {
    "cuda": " (it is launch-bound): use a larger batch, torch.compile or CUDA graphs",
    "cpu": ", or other jobs disturb the clock: use a larger batch, more rounds or the clock `process`",
}
"""By device, what is likely where the number of tokens does not matter, and what helps."""
LITTLE_SAVED = 0.9
"""Where this share of the multiply-adds is left, or more, there is little to gain."""


def why_no_speedup(
    tower: TowerReport, speedup: float, oracle_speedup: float, batch_size: int, device: torch.device
) -> str | None:
    """Return one line on why merging gains nothing, by the first reason that holds, or `None` where it gains."""
    if speedup >= NO_SPEEDUP:
        return None
    path, left = _path(tower), (tower.gflops or 0) / (tower.gflops_unmerged or 1)
    left = 0 if tower.is_projected else left
    reasons = (
        (path[-1] == path[0], "nothing merged: " + (tower.notes[0] if tower.notes else "no block was asked to")),
        (left > LITTLE_SAVED, f"the schedule leaves {left:.0%} of the multiply-adds: merge more tokens, or earlier"),
        (path[0] < FEW_TOKENS, f"too few tokens: of {path[0]:.0f} little is left to merge; use larger inputs"),
        (
            oracle_speedup < NO_SPEEDUP,
            f"even plainly cut tokens are no faster, so the time does not go into tokens at batch size {batch_size} "
            f"on {device.type}{FIXED_COSTS.get(device.type, ': use a larger batch')}",
        ),
        (tower.backend == "eager", "eager attention: use `model.set_attn_implementation('sdpa')`"),
        (
            True,
            f"matching and merging cost what they save; without them it would be {oracle_speedup:.2f} times as fast",
        ),
    )
    return next(text for holds, text in reasons if holds)


def _runner(model: Any, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
    return lambda: model(**inputs)


def _path(tower: TowerReport) -> list[float]:
    """Return the tokens into each block and, last, those out of the last one."""
    tokens = tower.tokens or ()
    return [tokens[0][0], *(after for _, after in tokens)]

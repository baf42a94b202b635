"""A grid of merge configs, and for each what merging has to beat: two controls that merge nothing at the same cost."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, product
from typing import Any

import torch

from ...api import apply, remove
from ...config import MergeConfig, format_config
from ...config.text import is_unmerged
from ...inspection.reports import Report, report
from ...merging.methods import get_method
from ..data.samples import Sample
from ..job import Inputs, Job
from ..model_state import plain_model
from ..running.batches import prepare
from ..variants import Variant
from .budget.spaces.projected import PROJECTED

logger = logging.getLogger(__name__)

CALIBRATION = 64
"""Samples, spread over the split, on which each config's tokens and GFLOPs are measured to choose its controls."""


@dataclass(frozen=True)
class Grid:
    """Parameter grid; each method uses the fields that apply to it.

    Attributes:
        methods: merging methods.
        r: tokens merged a block, for the methods that take it.
        schedules: inflections that `r` is combined with: 0 constant, -1 falling, +1 rising.
        thresholds: for the methods that are searched by `threshold`, as MaMe. A method that is searched by another
            field brings its own values.
        layers: the blocks that merge; `None` is the method's default.
        where: the place where tokens merge, as in `MergeConfig`; schedules and layers apply to blocks alone.
    """

    methods: Sequence[str] = ("tome", "mame")
    r: Sequence[int] = (4, 8, 13, 16)
    schedules: Sequence[float] = (0.0,)
    thresholds: Sequence[float] = (0.9, 0.8, 0.7)
    layers: Sequence[Sequence[int] | None] = (None,)
    where: str = "auto"

    def configs(self) -> list[MergeConfig]:
        """Return all configs of the grid.

        Raises:
            ValueError: an unknown method, a value out of range, or a config that merges nothing.
        """
        configs = [MergeConfig(**fields) for method in self.methods for fields in self._fields(method)]
        idle = next((config for config in configs if is_unmerged(config)), None)
        if idle is not None:
            raise ValueError(
                f"{format_config(idle)} of the grid merges nothing; the unmerged model always runs, so leave it out."
            )
        return configs

    def _fields(self, method: str) -> Iterable[dict[str, Any]]:
        row = get_method(method)
        values: Sequence[Any] = self.thresholds if row.search_field == "threshold" else row.search_values
        if row.search_field == "r":
            values = [(r, inflection) if inflection else r for r, inflection in product(self.r, self.schedules)]
        for value, layers in product(values, self.layers):
            yield {"method": method, row.search_field: value, "layers": layers, "where": self.where}


@dataclass(frozen=True)
class _Cost:
    """What a config costs: GFLOPs, and the tokens into the first block and out of each; means over the samples."""

    gflops: float | None
    tokens: list[float]


def with_controls(
    job: Job, configs: Sequence[MergeConfig], *, batch_size: int = 16
) -> tuple[list[Variant], list[str]]:
    """Return each config with its controls, and notes on controls that cannot be.

    Random pruning drops as many tokens in each block as the config merges. The unmerged model on downsampled images
    gets the size whose GFLOPs are nearest to the config's; a size that several configs share stands once.
    """
    with plain_model(job.model) as state:
        variants, notes = _with_controls(job, configs, batch_size)
    return variants, [*state, *notes]


def _with_controls(job: Job, configs: Sequence[MergeConfig], batch_size: int) -> tuple[list[Variant], list[str]]:
    samples = _spread_samples(job)
    prepared = [prepare(job, samples[start : start + batch_size])[0] for start in range(0, len(samples), batch_size)]
    batches = [batch.inputs for batch in prepared if batch is not None]
    if not batches:  # the evaluation says what is wrong with the data
        return [Variant(format_config(config), config) for config in configs], []
    sizes, notes = _sizes(job, batches[0]) if any(config.where != PROJECTED for config in configs) else ({}, [])
    variants: dict[str, Variant] = {}
    for config in configs:
        cost = _measure(job, config, batches)
        if cost.tokens[0] == cost.tokens[-1]:
            notes.append(f"{format_config(config)} merges nothing in the {len(samples)} samples that it was tried on")
        controls = [_random_pruning(config, cost)]
        if config.where != PROJECTED:  # images of another size cost the tower less, and not the language model alone
            controls += _downsampled(cost, sizes)
        for variant in (Variant(format_config(config), config), *controls):
            variants.setdefault(variant.name, variant)
    return list(variants.values()), notes


def _spread_samples(job: Job) -> list[Sample]:
    step = max(1, len(job.data) // CALIBRATION)  # a split is often sorted by class; its beginning says little
    entries = job.data.read(lambda position: position % step == 0)
    return list(islice((entry for entry in entries if isinstance(entry, Sample)), CALIBRATION))


def _random_pruning(config: MergeConfig, cost: _Cost) -> Variant:
    if get_method(config.method).takes_r:
        fields: dict[str, Any] = {"r": config.r, "ratio": config.ratio, "layers": config.layers}
    else:
        # How many tokens merge depends on the images; pruning takes the mean of each block.
        counts = [round(count) for count in cost.tokens]
        dropped = [before - after for before, after in pairwise(counts)]
        fields = {"r": dropped[0] if config.where == PROJECTED else dropped}
    pruned = MergeConfig(method="random_prune", where=config.where, **fields)
    return Variant(format_config(pruned), pruned, control="random_prune")


def _downsampled(cost: _Cost, sizes: dict[tuple[int, int], float]) -> list[Variant]:
    target = cost.gflops
    if target is None or not sizes:
        return []
    size = min(sizes, key=lambda size: abs(sizes[size] - target))
    return [Variant(f"downsampled {size[0]}x{size[1]}", image_size=size, control="downsampled")]


def _sizes(job: Job, inputs: Inputs) -> tuple[dict[tuple[int, int], float], list[str]]:
    """Return the GFLOPs of the unmerged model at each smaller size of its images, and a note if it takes none."""
    pixels = inputs.get("pixel_values")
    patch = getattr(getattr(job.model.config, "vision_config", job.model.config), "patch_size", None)
    if pixels is None or pixels.ndim != 4 or not isinstance(patch, int):
        return {}, ["no downsampled control: the inputs are not images cut into square patches"]
    height, width = pixels.shape[-2:]
    single = {name: value[:1] for name, value in inputs.items()}
    sizes = {}
    for rows in range(1, height // patch):
        size = (rows * patch, max(1, round(rows * width / height)) * patch)
        view = Variant("", image_size=size).view(single)
        try:
            cost = _measure(job, MergeConfig(), [view])
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            logger.debug("no downsampling", exc_info=True)
            return {}, [f"no downsampled control: {type(job.model).__name__} takes no other image size ({reason})"]
        if cost.gflops is not None:
            sizes[size] = cost.gflops
    return sizes, []


@torch.inference_mode()
def _measure(job: Job, config: MergeConfig, batches: Sequence[Inputs]) -> _Cost:
    """Run some batches with a config and return what they cost, each weighted alike."""
    apply(job.model, config)
    try:
        reports = []
        for inputs in batches:
            job.run(job.model, inputs)
            reports.append(report(job.model))
    finally:
        remove(job.model)
    counts = [merge_report.gflops for merge_report in reports]
    known_counts = [count for count in counts if count is not None]
    paths = [[tower.tokens[0][0], *(after for _, after in tower.tokens)] for tower in _first_towers(reports)]
    return _Cost(
        gflops=sum(known_counts) / len(known_counts) if known_counts and len(known_counts) == len(counts) else None,
        tokens=[sum(column) / len(paths) for column in zip(*paths)],
    )


def _first_towers(reports: Sequence[Report]) -> list[Any]:
    return [each.towers[0] for each in reports if each.towers[0].tokens]

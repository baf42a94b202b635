"""The evaluation loop: each variant is applied, run and removed over the same samples, beside the unmerged model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..api import apply, remove
from ..config import MergeConfig
from ..inspection.reports import Report, report
from ..profiling.measure import Clock, peak_memory_mib
from .batches import Batch, prepare, shapes, to_model
from .data.samples import Sample, Skipped
from .data.splits import DataError
from .describe import describe_run, identify
from .distributed import DistributedContext, distributed_context
from .environment import describe_environment
from .job import Inputs, Job
from .options import JobOptions
from .store.fingerprint import Identity
from .store.lock import lock_folder
from .store.record import Record
from .store.results import Results, describe_data, nothing_readable
from .store.rows import make_rows, shared_positions
from .store.run_store import Records
from .variants import Variant, as_variants

__all__ = ["Job", "JobOptions", "Results", "evaluate", "to_model"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the forwards done and those in all, counted in samples; the latter is 0 where a stream does not tell."""


def evaluate(
    job: Job,
    configs: Sequence[MergeConfig | Variant],
    *,
    batch_size: int = 16,
    on_progress: Progress | None = None,
    out: Path | None = None,
    speedups: bool = True,
) -> Results:
    """Run every config over the job's data and return accuracy, agreement, tokens, GFLOPs, speed and memory of each.

    The unmerged model always runs, and comes first. Timed are the model's forwards alone, after one untimed batch for
    each config; every chunk of samples goes through all configs in turn, so that a machine that slows down slows all.

    Under `torchrun` every process takes whole batches of its own, so that each sample is seen once, in the company in
    which a single process would see it, and all return the same results.

    Args:
        job: the model, its data and how the two meet.
        configs: merge configs, or variants.
        batch_size: samples in a batch; halved where the GPU's memory is too small.
        on_progress: see `Progress`.
        out (`Path`, *optional*): folder in which each sample's results are kept as they come; a run that was killed
            goes on from there.
        speedups: time the unmerged model again beside a config that an earlier run has not seen; without this such a
            config has no speed-up, as times of different runs do not compare.

    Raises:
        UnsupportedModelError: merging does not work on this model.
        ValueError: a config does not fit the model (found before anything runs), no sample could be read, or `out`
            holds samples of another run (see `identity`) or another run is writing to it.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}; it takes an integer of at least 1.")
    variants = as_variants(configs)
    _check(job.model, variants)
    dist = distributed_context(job.model.device.type)
    with lock_folder(out, dist.is_main):
        return _evaluate(job, variants, dist, batch_size, on_progress, out, speedups)


def _evaluate(
    job: Job,
    variants: list[Variant],
    dist: DistributedContext,
    batch_size: int,
    on_progress: Progress | None,
    out: Path | None,
    speedups: bool,
) -> Results:
    records = _open_records(job, batch_size, out, dist)
    done = sum(len(records.by_variant[variant.name]) for variant in variants)
    loop = _Loop(job, variants, records, batch_size, dist, on_progress, speedups, done)
    for batches in loop.chunks():
        loop.run(batches)
    records.merge(dist.gather(records.new))
    positions = shared_positions(records, variants)
    if not positions:
        raise DataError(nothing_readable(job.data.name, job.data.split, records))
    return Results(
        environment=records.describe_environment(),
        run={**describe_run(job, batch_size), "processes": dist.size},
        data=describe_data(job.data.name, job.data.split, job.data.left_out, records, positions),
        rows=make_rows(records, variants, job.scorer, positions),
    )


def _open_records(job: Job, batch_size: int, out: Path | None, dist: DistributedContext) -> Records:
    environment = describe_environment(job.model.device)
    if out is None:
        return Records.open(Identity(), None, dist, environment)
    listed = job.data.listed()
    records = Records.open(identify(job, batch_size, listed), out, dist, environment)
    records.check_results(job.scorer.fields())
    if listed is not None:
        records.check(listed)
    return records


@dataclass
class _Loop:
    """One process's share of an evaluation."""

    job: Job
    variants: list[Variant]
    records: Records
    batch_size: int
    dist: DistributedContext
    on_progress: Progress | None
    speedups: bool
    done: int = 0
    fits: int | None = None
    warm: set[str] = field(default_factory=set)
    counts: dict[object, tuple[float, float | None]] = field(default_factory=dict)

    def chunks(self) -> Iterator[list[list[Sample]]]:
        """Yield the batches that are still to do, several at once."""
        size = max(1, self.job.chunk // self.batch_size)
        batches = []
        for batch in self._batches():
            batches.append(batch)
            if len(batches) == size:
                yield batches
                batches = []
        if batches:
            yield batches

    def _batches(self) -> Iterator[list[Sample]]:
        # A batch is made of neighbouring positions, whatever is skipped or done already, so that every sample always
        # meets the same others: how many processes there are cannot change a result.
        def number(found: Sample | Skipped) -> int:
            return found.position // self.batch_size

        for _, batch in groupby(self.job.data.read(self._is_mine), key=number):
            samples = []
            for found in batch:
                if isinstance(found, Sample):
                    self.records.check_sample(found)
                    samples.append(found)
                else:
                    self.records.skip(found)
            if self._is_lacking(samples):
                yield samples

    def _is_mine(self, position: int) -> bool:
        batch = position // self.batch_size
        if batch % self.dist.size != self.dist.rank:
            return False
        end = (batch + 1) * self.batch_size
        positions = range(batch * self.batch_size, min(end, len(self.job.data) or end))
        return not self.records.is_finished([variant.name for variant in self.variants], positions)

    def _is_lacking(self, samples: Sequence[Sample]) -> bool:
        return not all(self.records.has(variant.name, samples) for variant in self.variants)

    def run(self, batches: list[list[Sample]]) -> None:
        """Run all variants over some batches."""
        ready = [batch for samples in batches if (batch := self._prepare(samples)) is not None]
        todo = {
            variant.name: [batch for batch in ready if not self.records.has(variant.name, batch.samples)]
            for variant in self.variants
        }
        unmerged = self.variants[0]
        again = self._only_to_time(todo[unmerged.name], [todo[variant.name] for variant in self.variants[1:]])
        for variant in self.variants:
            self._run_variant(variant, todo[variant.name], again if variant is unmerged else [])
            self.done += sum(len(batch.samples) for batch in todo[variant.name]) * self.dist.size
            if self.on_progress is not None:
                total = len(self.job.data) * len(self.variants)
                self.on_progress(min(self.done, total or self.done), total)

    def _prepare(self, samples: list[Sample]) -> Batch | None:
        batch, refused = prepare(self.job, samples)
        for skipped in refused:
            self.records.skip(skipped)
        return batch

    def _only_to_time(self, unmerged: list[Batch], others: list[list[Batch]]) -> list[Batch]:
        """Return the batches that the unmerged model is done with, but others run now and are to be compared with."""
        if not self.speedups:
            return []
        known = {id(batch) for batch in unmerged}
        compared = {id(batch): batch for todo in others for batch in todo}
        return [batch for key, batch in compared.items() if key not in known]

    @torch.inference_mode()
    def _run_variant(self, variant: Variant, todo: list[Batch], again: list[Batch]) -> None:
        if not todo and not again:
            return
        model = self.job.model
        if variant.merges:
            apply(model, variant.config)
        try:
            self._warm_up(variant, variant.view((todo or again)[0].inputs))
            for batch in again:
                seconds = self._timed(variant.view(batch.inputs))[1] / len(batch.samples)
                self.records.add(
                    [
                        {"timed_again": variant.name, "sample": sample.position, "seconds": seconds}
                        for sample in batch.samples
                    ]
                )
            for batch in todo:
                self.records.add(self._results(variant, batch))
        finally:
            remove(model)

    def _warm_up(self, variant: Variant, inputs: Inputs) -> None:
        """Run one untimed batch the first time that a variant is seen; a second one tells its memory."""
        if variant.name in self.warm:
            return
        self.warm.add(variant.name)
        self._forward(inputs)
        if variant.name not in self.records.peaks:
            model = self.job.model
            peak = peak_memory_mib(lambda: self._forward(inputs), model, model.device)
            self.records.add([{"variant": variant.name, "peak_memory_mib": peak}])

    def _results(self, variant: Variant, batch: Batch) -> list[Record]:
        inputs = variant.view(batch.inputs)
        counts = None if variant.merges else self._unmerged_counts(inputs)
        output, seconds = self._timed(inputs)
        tokens, gflops = counts or _counts(self.job.model)
        cost = {"tokens": tokens, "gflops": gflops, "seconds": seconds / len(batch.samples)}
        return [
            {"variant": variant.name, "sample": sample.position, "name": sample.name, **cost, **found}
            for sample, found in zip(batch.samples, self.job.scorer.records(batch.samples, output))
        ]

    def _unmerged_counts(self, inputs: Inputs) -> tuple[float, float | None]:
        """Return tokens and GFLOPs of the untouched model, read from one untimed batch of each shape with `r=0`."""
        shape = shapes(inputs)
        if shape not in self.counts:
            apply(self.job.model, MergeConfig())
            try:
                self._forward(inputs)
                self.counts[shape] = _counts(self.job.model)
            finally:
                remove(self.job.model)
        return self.counts[shape]

    def _timed(self, inputs: Inputs) -> tuple[Any, float]:
        clock = Clock(self.job.model.device)
        return self._forward(inputs, clock), clock.seconds

    def _forward(self, inputs: Inputs, clock: Clock | None = None) -> Any:
        """Return what the job's run gives for a batch; a GPU out of memory gets ever smaller parts of it."""
        clock = clock or Clock(self.job.model.device)
        rows = {len(value) for value in inputs.values() if isinstance(value, torch.Tensor)}
        count = max(rows)
        while True:
            try:
                parts, clock.seconds = _split(inputs, count, self.fits or count), 0.0
                with clock:
                    outputs = [self.job.run(self.job.model, part) for part in parts]
                return self.job.scorer.join(outputs)
            except torch.OutOfMemoryError:
                size = min(self.fits or count, count)
                if size == 1 or len(rows) > 1:  # images cut into tiles cannot be told apart by rows
                    raise
                self.fits = size // 2
                torch.cuda.empty_cache()
                logger.warning("Out of memory with batches of %d; going on with %d.", size, self.fits)


def _check(model: PreTrainedModel, variants: Sequence[Variant]) -> None:
    for variant in variants:
        apply(model, variant.config)
        remove(model)


def _split(inputs: Inputs, count: int, size: int) -> list[Inputs]:
    if size >= count:
        return [inputs]
    return [
        {name: value[at : at + size] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        for at in range(0, count, size)
    ]


def _counts(model: PreTrainedModel) -> tuple[float, float | None]:
    """Return the tokens at the end and the GFLOPs of the last forward pass, as means over its samples."""
    found = report(model)
    return found.towers[0].tokens_out or 0, gflops(found)


def gflops(found: Report) -> float | None:
    """Return the GFLOPs of all towers, or `None` where those of one are not known."""
    counts = [tower.gflops for tower in found.towers if tower.gflops is not None]
    return sum(counts) if len(counts) == len(found.towers) else None

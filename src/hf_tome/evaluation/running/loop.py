"""One process's share of an evaluation: batches, each through all variants, interleaved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel

from ...api import apply, remove
from ...inspection.reports import report
from ...profiling.measure import peak_memory_mib, release_cached_memory
from ...profiling.rounds import clock_for, time_once
from ..data.samples import Sample, Skipped
from ..distributed import DistributedContext
from ..job import Inputs, Job
from ..store.run_store import Records
from ..variants import UNMERGED, Variant
from .batches import Batch, prepare, rows_are_samples, shapes

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the forwards done and those in all, counted in samples; the latter is 0 where a stream does not tell."""

ROUNDS = 5
"""Rounds of timing at least; a batch is a round, and where there are fewer the last one is timed again."""


@dataclass
class Loop:
    """One process's share of an evaluation.

    Attributes:
        fits: samples of a batch that fit the accelerator's memory at once; `None` while all do.
        warm: names of the variants that have run.
        counts: tokens and GFLOPs of the unmerged model by the shapes of its inputs.
    """

    job: Job
    variants: list[Variant]
    records: Records
    batch_size: int
    dist: DistributedContext
    on_progress: Progress | None = None
    speedups: bool = True
    fits: int | None = None
    warm: set[str] = field(default_factory=set)
    counts: dict[object, tuple[float, float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.done = sum(len(self.records.by_variant[variant.name]) for variant in self.variants)
        self.clock = clock_for(self.job.model.device)

    def run(self) -> None:
        """Run all variants over this process's batches."""
        batch = None
        for number, samples in enumerate(self._batches()):
            prepared = self._prepare(samples)
            if prepared is not None:
                batch = prepared
                self._run_batch(batch, number % 2 == 1)
        if self.speedups and batch is not None:
            self._time_again(batch)

    def _batches(self) -> Iterator[list[Sample]]:
        # A batch is made of neighbouring positions, whatever is skipped or done already, so that every sample always
        # meets the same others: how many processes there are cannot change a result.
        def number(entry: Sample | Skipped) -> int:
            return entry.position // self.batch_size

        for _, batch in groupby(self.job.data.read(self._is_mine), key=number):
            samples = []
            for sample in batch:
                if isinstance(sample, Sample):
                    self.records.check_sample(sample)
                    samples.append(sample)
                else:
                    self.records.skip(sample)
            if not all(self.records.has(variant.name, samples) for variant in self.variants):
                yield samples

    def _is_mine(self, position: int) -> bool:
        batch = position // self.batch_size
        if batch % self.dist.size != self.dist.rank:
            return False
        end = (batch + 1) * self.batch_size
        positions = range(batch * self.batch_size, min(end, len(self.job.data) or end))
        return not self.records.is_finished([variant.name for variant in self.variants], positions)

    def _prepare(self, samples: list[Sample]) -> Batch | None:
        batch, refused = prepare(self.job, samples)
        for skipped in refused:
            self.records.skip(skipped)
        return batch

    def _run_batch(self, batch: Batch, backwards: bool) -> None:
        """Run the variants that lack the batch, and the unmerged model beside them, which makes a round of timing."""
        lacking = [variant for variant in self.variants if not self.records.has(variant.name, batch.samples)]
        timed = list(lacking)
        if self.speedups and lacking and lacking[0].name != UNMERGED:
            timed.insert(0, self.variants[0])
        seconds = {}
        for variant in timed[::-1] if backwards else timed:
            seconds[variant.name] = self._run_variant(variant, batch, keep=variant in lacking)
            if variant in lacking:
                self._report_progress(len(batch.samples))
        self._add_round(batch, 0, seconds)

    def _time_again(self, batch: Batch) -> None:
        """Time the variants that have fewer than `ROUNDS` rounds of this session on the last batch again."""
        for repeat in range(1, ROUNDS):
            short = [variant for variant in self.variants[1:] if self._rounds(variant) < ROUNDS]
            if not short:
                return
            timed = [self.variants[0], *short]
            order = timed[::-1] if repeat % 2 else timed
            self._add_round(batch, repeat, {each.name: self._run_variant(each, batch, keep=False) for each in order})

    def _rounds(self, variant: Variant) -> int:
        return sum(UNMERGED in seconds and variant.name in seconds for seconds in self.records.rounds.values())

    def _add_round(self, batch: Batch, repeat: int, seconds: dict[str, float]) -> None:
        if seconds:
            self.records.add([{"round": [batch.samples[0].position, repeat], "seconds": seconds}])

    def _report_progress(self, samples: int) -> None:
        self.done += samples * self.dist.size
        if self.on_progress is not None:
            total = len(self.job.data) * len(self.variants)
            self.on_progress(min(self.done, total or self.done), total)

    @torch.inference_mode()
    def _run_variant(self, variant: Variant, batch: Batch, *, keep: bool) -> float:
        """Run a batch with a variant, keep its results if asked to, and return the seconds a sample."""
        model, inputs, count = self.job.model, variant.view(batch.inputs), len(batch.samples)
        variant.attach(model)
        try:
            self._warm_up(variant, inputs, count)
            costs = self._unmerged_counts(inputs, count) if keep and not variant.changes_model else None
            output, seconds = self._forward(inputs, count)
            if keep:
                self._keep(variant, batch, output, costs or _counts(model))
        finally:
            remove(model)
        return seconds / count

    def _keep(self, variant: Variant, batch: Batch, output: Any, costs: tuple[float, float | None]) -> None:
        cost = {"tokens": costs[0], "gflops": costs[1]}
        self.records.add(
            [
                {"variant": variant.name, "sample": sample.position, "name": sample.name, **cost, **record}
                for sample, record in zip(batch.samples, self.job.scorer.records(batch.samples, output))
            ]
        )

    def _warm_up(self, variant: Variant, inputs: Inputs, count: int) -> None:
        """Run one untimed batch the first time that a variant is seen; a second one tells its memory."""
        if variant.name in self.warm:
            return
        self.warm.add(variant.name)
        self._forward(inputs, count)
        if variant.name not in self.records.peaks:
            model = self.job.model
            peak = peak_memory_mib(lambda: self._forward(inputs, count), model, model.device)
            self.records.add([{"variant": variant.name, "peak_memory_mib": peak}])

    def _unmerged_counts(self, inputs: Inputs, count: int) -> tuple[float, float | None]:
        """Return tokens and GFLOPs of the untouched model, read from one untimed batch of each shape with `r=0`."""
        shape = shapes(inputs)
        if shape not in self.counts:
            apply(self.job.model, self.variants[0].config)
            try:
                self._forward(inputs, count)
                self.counts[shape] = _counts(self.job.model)
            finally:
                remove(self.job.model)
        return self.counts[shape]

    def _forward(self, inputs: Inputs, count: int) -> tuple[Any, float]:
        """Return what the job's run gives for a batch of so many samples, and its seconds.

        An accelerator that is out of memory gets ever smaller parts of the batch, where the rows of all inputs are
        samples; rows of image tiles cannot be told apart by sample.
        """
        model = self.job.model
        outputs: list[Any] = []
        divisible = rows_are_samples(inputs, count)
        while True:
            size = min(self.fits or count, count) if divisible else count
            parts = _split(inputs, count, size)
            outputs.clear()
            try:
                run = partial(self._run_parts, parts, outputs)
                seconds = time_once(run, self.clock, model.device)
                return self.job.scorer.join(outputs), seconds
            except torch.OutOfMemoryError as error:
                if size == 1 or not divisible:
                    raise torch.OutOfMemoryError(_out_of_memory(size, divisible)) from error
                self.fits = size // 2
                release_cached_memory(model.device)
                logger.warning("Out of memory with batches of %d; continuing with %d.", size, self.fits)

    def _run_parts(self, parts: list[Inputs], outputs: list[Any]) -> None:
        outputs.extend(self.job.run(self.job.model, part) for part in parts)


def _out_of_memory(size: int, divisible: bool) -> str:
    if divisible:
        return "Out of memory with a single sample. Use a smaller model, --dtype bfloat16, or another --device."
    return (
        f"Out of memory with a batch of {size}, which cannot be divided, as the rows of its inputs are not samples. "
        f"Use a --batch-size below {size}."
    )


def _split(inputs: Inputs, count: int, size: int) -> list[Inputs]:
    if size >= count:
        return [inputs]
    return [
        {name: value[at : at + size] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        for at in range(0, count, size)
    ]


def _counts(model: PreTrainedModel) -> tuple[float, float | None]:
    """Return the tokens at the end and the GFLOPs of the last forward pass, as means over its samples."""
    merge_report = report(model)
    return merge_report.towers[0].tokens_out or 0, merge_report.gflops

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

from ..apply import apply, remove
from ..config import MergeConfig
from ..report import Report, report
from .data import DataError
from .environment import describe_environment
from .job import Inputs, Job, JobOptions
from .measure import Clock, peak_memory_mib
from .processes import Processes, processes
from .records import Records
from .results import Results, describe_data, describe_run, identity, nothing_readable
from .rows import make_rows
from .samples import Sample, Skipped
from .variants import Variant, as_variants

__all__ = ["Job", "JobOptions", "Results", "evaluate"]

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
) -> Results:
    """Run every config over the job's data and return accuracy, agreement, tokens, GFLOPs, speed and memory of each.

    The unmerged model always runs, and comes first. Timed are the model's forwards alone, after one untimed batch in
    each chunk of samples; every chunk goes through all configs in turn, so that a machine that slows down slows all.

    Under `torchrun` every process takes whole batches of its own, so that each sample is seen once, in the company in
    which a single process would see it, and all return the same results.

    Args:
        job: the model, its data and how the two meet.
        configs: merge configs, or variants.
        batch_size: samples in a batch; halved where the GPU's memory is too small.
        on_progress: see `Progress`.
        out (`Path`, *optional*): folder in which each sample's results are kept as they come; a run that was killed
            goes on from there.

    Raises:
        UnsupportedModelError: merging does not work on this model.
        ValueError: a config does not fit the model (found before anything runs), no sample could be read, or `out`
            holds samples of another run.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}; it takes an integer of at least 1.")
    variants = as_variants(configs)
    _check(job.model, variants)
    me = processes(job.model.device.type)
    run = describe_run(job, batch_size)
    records = Records.open({**run, **identity(job)}, out, me)
    done = sum(len(records.by_variant[variant.name]) for variant in variants)
    loop = _Loop(job, variants, records, batch_size, me, on_progress, done)
    for batches in loop.chunks():
        loop.run(batches)
    records.merge(me.gather(records.new))
    if not records.by_variant[variants[0].name]:
        raise DataError(nothing_readable(job, records))
    return Results(
        environment=describe_environment(job.model.device),
        run={**run, "processes": me.size},
        data=describe_data(job, records),
        rows=make_rows(records, variants, job.outcome),
    )


@dataclass
class _Loop:
    """One process's share of an evaluation."""

    job: Job
    variants: list[Variant]
    records: Records
    batch_size: int
    me: Processes
    on_progress: Progress | None
    done: int = 0
    fits: int | None = None
    counts: dict[str, tuple[float, float | None]] = field(default_factory=dict)

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
                    samples.append(found)
                elif found.position not in self.records.skipped:
                    self.records.add([{"sample": found.position, "name": found.sample, "skipped": found.reason}])
            if samples:
                yield samples

    def _is_mine(self, position: int) -> bool:
        batch = position // self.batch_size
        if batch % self.me.size != self.me.rank:
            return False
        end = (batch + 1) * self.batch_size
        positions = range(batch * self.batch_size, min(end, len(self.job.data) or end))
        return not self.records.is_finished([variant.name for variant in self.variants], positions)

    def run(self, batches: list[list[Sample]]) -> None:
        """Run all variants over some batches."""
        inputs = [to_model(self.job.prepare(samples), self.job.model) for samples in batches]
        count = sum(map(len, batches))
        for variant in self.variants:
            todo = [pair for pair in zip(batches, inputs) if not self.records.has(variant.name, pair[0])]
            if todo:
                self._run_variant(variant, todo)
            self.done += count * self.me.size
            if self.on_progress is not None:
                total = len(self.job.data) * len(self.variants)
                self.on_progress(min(self.done, total or self.done), total)

    @torch.inference_mode()
    def _run_variant(self, variant: Variant, todo: list[tuple[list[Sample], Inputs]]) -> None:
        model, views = self.job.model, [(samples, variant.view(inputs)) for samples, inputs in todo]
        counts = None if variant.merges else self._unmerged_counts(views[0][1])
        if variant.merges:
            apply(model, variant.config)
        try:
            self._forward(views[0][1])  # warm-up
            if variant.name not in self.records.peaks:  # the first batch tells the memory, untimed
                peak = peak_memory_mib(lambda: self._forward(views[0][1]), model, model.device)
                self.records.add([{"variant": variant.name, "peak_memory_mib": peak}])
            for samples, inputs in views:
                clock = Clock(model.device)
                output = self._forward(inputs, clock)
                tokens, gflops = counts or _counts(model)
                cost = {"tokens": tokens, "gflops": gflops, "seconds": clock.seconds / len(samples)}
                self.records.add(
                    [
                        {"variant": variant.name, "sample": sample.position, "name": sample.name, **cost, **found}
                        for sample, found in zip(samples, self.job.outcome.records(samples, output))
                    ]
                )
        finally:
            remove(model)

    def _unmerged_counts(self, inputs: Inputs) -> tuple[float, float | None]:
        """Return tokens and GFLOPs of the untouched model, read from one untimed batch with `r=0`."""
        apply(self.job.model, MergeConfig())
        try:
            self._forward(inputs)
            return _counts(self.job.model)
        finally:
            remove(self.job.model)

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
                return self.job.outcome.join(outputs)
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


def to_model(inputs: Inputs, model: PreTrainedModel) -> Inputs:
    """Move inputs to the model's device, floating-point ones in its dtype."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


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

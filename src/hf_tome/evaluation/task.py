"""The evaluation loop: each config is applied, run and removed over the same samples, beside the unmerged model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from ..apply import apply, remove
from ..config import MergeConfig
from ..report import report
from .config_text import format_config, is_unmerged
from .data import DataError, Sample, Skipped
from .environment import describe_environment
from .measure import Clock, peak_memory_mib
from .metrics import TOP_K, Agreement, TopKAccuracy

logger = logging.getLogger(__name__)

CHUNK = 256
"""Samples whose inputs are held in memory at once: each is preprocessed once, and then goes through every config."""

Inputs = dict[str, torch.Tensor]
Progress = Callable[[int, int], None]
"""Called with the forwards done and those in all, counted in samples; the latter is 0 where a stream does not tell."""


@dataclass(frozen=True)
class JobOptions:
    """What to evaluate on what; the options that all tasks share."""

    model: str
    data: str
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    streaming: bool = False
    labels: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"


class Data(Protocol):
    """Samples of one split, and which of them had to be skipped while they were iterated over."""

    name: str
    split: str
    skipped: list[Skipped]

    def __iter__(self) -> Iterator[Sample]:
        """Read the samples one by one."""

    def __len__(self) -> int:
        """Return the number of samples, skipped ones included; 0 where it is unknown."""


@dataclass
class Job:
    """A model, its data and how the two meet; a task is a function that builds one."""

    task: str
    model_name: str
    model: PreTrainedModel
    data: Data
    prepare: Callable[[Sequence[Sample]], Inputs]
    """Samples to model inputs, one row a sample, on the CPU."""
    scores: Callable[[PreTrainedModel, Inputs], torch.Tensor]
    """Inputs on the model's device to class scores (B, classes); this is what is timed."""


@dataclass
class Results:
    """What one evaluation gave, as plain JSON values."""

    environment: dict[str, Any]
    run: dict[str, Any]
    data: dict[str, Any]
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole as one JSON object."""
        return {"environment": self.environment, "run": self.run, "data": self.data, "rows": self.rows}


@dataclass
class _Tally:
    """What one config gave so far."""

    config: MergeConfig
    clock: Clock
    peak_memory_mib: float = 0.0
    samples: int = 0
    tokens: float = 0.0
    gflops: float | None = 0.0
    top_k: TopKAccuracy = field(default_factory=lambda: TopKAccuracy(keep_in_memory=True))
    agreement: Agreement = field(default_factory=lambda: Agreement(keep_in_memory=True))

    def add_report(self, model: PreTrainedModel, samples: int) -> None:
        """Add the tokens and GFLOPs of the last forward, of `samples` samples."""
        towers = report(model).towers
        self.samples += samples
        self.tokens += samples * (towers[0].tokens_out or 0)
        counts = [tower.gflops for tower in towers if tower.gflops is not None]
        known = self.gflops is not None and len(counts) == len(towers)
        self.gflops = (self.gflops or 0) + samples * sum(counts) if known else None

    def row(self, baseline: _Tally) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "name": "unmerged" if self is baseline else format_config(self.config),
            **self.top_k.compute(),
            **self.agreement.compute(),
            "tokens": self.tokens / self.samples,
            "gflops": None if self.gflops is None else self.gflops / self.samples,
            "samples_per_second": self.samples / self.clock.seconds,
            "speedup": baseline.clock.seconds / self.clock.seconds,
            "peak_memory_mib": self.peak_memory_mib,
        }


def evaluate(
    job: Job, configs: Sequence[MergeConfig], *, batch_size: int = 16, on_progress: Progress | None = None
) -> Results:
    """Run every config over the job's data and return accuracy, agreement, tokens, GFLOPs, speed and memory of each.

    The unmerged model always runs, and comes first. Timed are the model's forwards alone, after one untimed batch in
    each chunk of samples; every chunk goes through all configs in turn, so that a machine that slows down slows all.

    Raises:
        UnsupportedModelError: merging does not work on this model.
        ValueError: a config does not fit the model (found before anything runs), or no sample could be read.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}; it takes an integer of at least 1.")
    configs = with_baseline(configs)
    _check(job.model, configs)
    tallies = [_Tally(config, Clock(job.model.device)) for config in configs]
    done, total = 0, len(job.data) * len(tallies)
    for samples in _chunks(job.data, CHUNK):
        labels = torch.tensor([sample.label for sample in samples])
        batches = _batches(job.prepare(samples), len(samples), batch_size, job.model)
        baseline_top1 = torch.empty(0)
        for tally in tallies:
            ranked = _run_merged(job, tally, batches) if tally is not tallies[0] else _run_plain(job, tally, batches)
            top1 = ranked[:, 0]
            baseline_top1 = top1 if tally is tallies[0] else baseline_top1
            tally.top_k.add_batch(predictions=ranked.tolist(), references=labels.tolist())
            tally.agreement.add_batch(predictions=top1.tolist(), references=baseline_top1.tolist())
            done += len(samples)
            if on_progress is not None:
                on_progress(done, total)
    if not tallies[0].samples:
        raise DataError(_nothing_readable(job))
    return Results(
        environment=describe_environment(job.model.device),
        run=_describe_run(job, batch_size),
        data=_describe_data(job, tallies[0].samples),
        rows=[tally.row(tallies[0]) for tally in tallies],
    )


def with_baseline(configs: Iterable[MergeConfig]) -> list[MergeConfig]:
    """Return the unmerged config and then the others as they come, each once."""
    return [MergeConfig(), *dict.fromkeys(config for config in configs if not is_unmerged(config))]


def _check(model: PreTrainedModel, configs: Sequence[MergeConfig]) -> None:
    for config in configs:
        apply(model, config)
        remove(model)


def _chunks(data: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    samples = iter(data)
    while chunk := list(islice(samples, size)):
        yield chunk


def _batches(inputs: Mapping[str, torch.Tensor], count: int, size: int, model: PreTrainedModel) -> list[Inputs]:
    """Cut the inputs into batches on the model's device, floating-point ones in its dtype."""

    def to_model(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(model.device, model.dtype if tensor.is_floating_point() else tensor.dtype)

    return [
        {name: to_model(tensor[start : start + size]) for name, tensor in inputs.items()}
        for start in range(0, count, size)
    ]


def _run_plain(job: Job, tally: _Tally, batches: list[Inputs]) -> torch.Tensor:
    """Run the untouched model; tokens and GFLOPs are read from one untimed batch with `r=0`."""
    ranked = _run(job, tally, batches)
    apply(job.model, tally.config)
    try:
        with torch.inference_mode():
            job.scores(job.model, batches[0])
        tally.add_report(job.model, len(ranked))
    finally:
        remove(job.model)
    return ranked


def _run_merged(job: Job, tally: _Tally, batches: list[Inputs]) -> torch.Tensor:
    apply(job.model, tally.config)
    try:
        return _run(job, tally, batches, add_reports=True)
    finally:
        remove(job.model)


@torch.inference_mode()
def _run(job: Job, tally: _Tally, batches: list[Inputs], add_reports: bool = False) -> torch.Tensor:
    """Time the forwards of one chunk and return the best classes of each sample, best first (N, k)."""
    model = job.model
    job.scores(model, batches[0])  # warm-up
    if not tally.samples:  # the first chunk: its first batch tells the memory, untimed
        tally.peak_memory_mib = peak_memory_mib(lambda: job.scores(model, batches[0]), model, model.device)
    ranked = []
    for batch in batches:
        with tally.clock:
            scores = job.scores(model, batch)
        ranked.append(scores.float().topk(min(max(TOP_K), scores.shape[-1])).indices.cpu())
        if add_reports:
            tally.add_report(model, len(scores))
    return torch.cat(ranked)


def _nothing_readable(job: Job) -> str:
    skipped = job.data.skipped
    if not skipped:
        return f"Split {job.data.split!r} of {job.data.name} has no samples."
    first = skipped[0]
    return (
        f"None of the {len(skipped)} samples in split {job.data.split!r} of {job.data.name} could be read; the first "
        f"is {first.sample}: {first.reason}"
    )


def _describe_run(job: Job, batch_size: int) -> dict[str, Any]:
    return {
        "task": job.task,
        "model": job.model_name,
        "dtype": str(job.model.dtype).removeprefix("torch."),
        "attention": job.model.config._attn_implementation,
        "batch_size": batch_size,
    }


def _describe_data(job: Job, samples: int) -> dict[str, Any]:
    return {
        "id": job.data.name,
        "split": job.data.split,
        "num_samples": samples,
        "skipped": [{"sample": skipped.sample, "reason": skipped.reason} for skipped in job.data.skipped],
    }

"""Candidates on the samples to choose by: each runs once, counts as an evaluation, and is kept in a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....api import apply, remove
from ....config import MergeConfig
from ....files import append_lines
from ....inspection.reports import report
from ....profiling.rounds import CLOCKS, clock_for
from ...job import Job
from ...running.batches import Batch
from ...store.run_store import read_lines
from ...variants import UNMERGED, Variant
from .objective import DISTRIBUTIONS, LABEL_WEIGHT, divergence, label_divergence

FILE = "trials.jsonl"
Progress = Callable[[int, int, str], None]
"""Called with the evaluations done, those in all, and what runs now."""


class Exhausted(Exception):
    """There are no evaluations, or no time, left."""


@dataclass(frozen=True)
class Trial:
    """What a candidate gave: the divergence of each sample, GFLOPs a sample where they are known, and the seconds.

    Seconds are of processor time on a CPU.
    """

    variant: Variant
    divergences: np.ndarray
    gflops: float | None
    seconds: float

    @property
    def loss(self) -> float:
        """The mean divergence."""
        return float(self.divergences.mean())


@dataclass
class Trials:
    """Runs candidates, within a number of evaluations and a time.

    Attributes:
        identity: what must be equal for trials of an earlier run to count.
        deadline: of `time.monotonic`; `None` for none.
        use_labels: compare with the labels too, where there are any.
        views: image sizes whose mirrored views the targets are the mean of; without any, the target is the unmerged
            model's output itself.
    """

    job: Job
    batches: Sequence[Batch]
    identity: dict[str, Any]
    max_evaluations: int
    deadline: float | None = None
    folder: Path | None = None
    on_progress: Progress | None = None
    views: Sequence[tuple[int, int] | None] = ()
    use_labels: bool = True
    done: dict[str, Trial] = field(default_factory=dict)
    used: int = 0
    num_labels: int = 0
    _known: dict[str, dict[str, Any]] = field(default_factory=dict)
    _targets: list[Tensor] = field(default_factory=list)
    _is_begun: bool = False
    slowest: float = 0.0
    seconds: float = 0.0

    def start(self) -> None:
        """Read what an earlier run left, and make the targets.

        Raises:
            ValueError: the folder holds trials of another run.
        """
        if self.folder is not None:
            self._read(self.folder / FILE)
        sums: list[Tensor] = []
        for size in self.views or [None]:
            view = Variant(UNMERGED, MergeConfig(where=self.job.place), size)
            outputs, _, _ = self._outputs(view, mirrored=bool(self.views))
            sums = [summed + other for summed, other in zip(sums, outputs)] if sums else outputs
        self._targets = [total / max(len(self.views), 1) for total in sums]
        if self.use_labels:
            targets_and_masks = [self._by_labels(batch, target) for batch, target in zip(self.batches, self._targets)]
            self.num_labels = int(sum(has_label.sum() for _, has_label in targets_and_masks))

    def run(self, variant: Variant) -> Trial:
        """Return what a candidate gave, from an earlier run where it has run.

        Raises:
            Exhausted: no evaluation or no time is left for it.
        """
        if variant.name in self.done:
            return self.done[variant.name]
        self._check_left()
        saved = self._known.get(variant.name)
        if saved is not None:
            self.used, self.seconds = self.used + 1, self.seconds + saved["seconds"]
            trial = Trial(variant, np.array(saved["divergences"]), saved["gflops"], saved["seconds"])
        else:
            outputs, cost, seconds = self._outputs(variant)
            divergences = [self._compare(*each) for each in zip(self.batches, self._targets, outputs)]
            trial = Trial(variant, torch.cat(divergences).numpy(), cost, seconds)
            self._write(trial)
        self.done[variant.name] = trial
        return trial

    def _compare(self, batch: Batch, target: Tensor, output: Tensor) -> Tensor:
        plain = divergence(target, output, self.job.outputs)
        if not self.num_labels:
            return plain
        by_label, has_label = self._by_labels(batch, output)
        return torch.where(has_label, (1 - LABEL_WEIGHT) * plain + LABEL_WEIGHT * by_label, plain)

    def _by_labels(self, batch: Batch, output: Tensor) -> tuple[Tensor, Tensor]:
        return label_divergence([sample.label for sample in batch.samples], output, self.job.outputs)

    def are_alike(self) -> bool:
        """Return whether the targets of all samples are the same."""
        targets = torch.cat(self._targets)
        return len(targets) > 1 and bool((targets - targets[:1]).abs().amax() < 1e-6)

    def _check_left(self) -> None:
        late = self.deadline is not None and time.monotonic() + self.slowest > self.deadline
        if late or self.used >= self.max_evaluations:
            raise Exhausted

    @torch.inference_mode()
    def _outputs(self, variant: Variant, mirrored: bool = False) -> tuple[list[Tensor], float | None, float]:
        """Return what is compared of each batch, the GFLOPs a sample, and the seconds that it took."""
        if self.on_progress is not None:
            self.on_progress(self.used, self.max_evaluations, variant.name)
        job, start = self.job, time.monotonic()
        clock = CLOCKS[clock_for(job.model.device)]
        begun = clock()
        forward = getattr(job.run, "logits", job.run)  # of generated text: the logits of its first token
        outputs, costs = [], []
        apply(job.model, variant.config)  # r=0 too, for the report
        try:
            for batch in self.batches:
                inputs = variant.view(batch.inputs)
                if mirrored:
                    inputs = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
                output = forward(job.model, inputs)
                outputs.append(DISTRIBUTIONS[job.outputs](output.float().cpu()))
                costs.append((report(job.model).gflops, len(batch.samples)))
        finally:
            remove(job.model)
        seconds = clock() - begun
        self.slowest, self.used = max(self.slowest, time.monotonic() - start), self.used + 1
        self.seconds += seconds
        counted = [(cost, count) for cost, count in costs if cost is not None]
        total = sum(cost * count for cost, count in counted) / sum(count for _, count in counted) if counted else None
        return outputs, total if len(counted) == len(costs) else None, seconds

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        lines = read_lines(path)
        if lines and lines[0].get("identity") != json.loads(json.dumps(self.identity)):
            raise ValueError(
                f"{path} holds trials of another run (other samples, model, seed or settings). Give another --out, or "
                "start afresh with --restart."
            )
        self._is_begun = bool(lines)
        self._known = {line["variant"]: line for line in lines[1:]}

    def _write(self, trial: Trial) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {
            "variant": trial.variant.name,
            "divergences": trial.divergences.tolist(),
            "gflops": trial.gflops,
            "seconds": trial.seconds,
        }
        header = [] if self._is_begun else [{"identity": self.identity}]
        append_lines(self.folder / FILE, map(json.dumps, [*header, record]))
        self._is_begun = True

"""How long variants take on one batch, beside the unmerged model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from statistics import median

import torch

from ....profiling.rounds import interleave
from ....profiling.slice_oracle import shallow_copy
from ...job import Job
from ...running.batches import Batch
from ...variants import UNMERGED, Variant

ROUNDS = 7
"""Rounds in which variants are timed on one batch, one after the other."""


def relative_seconds(job: Job, batch: Batch, variants: Mapping[str, Variant]) -> dict[str, float]:
    """Return the time of each variant on a batch, as a share of the unmerged model's."""
    models = {UNMERGED: job.model}
    runs = {UNMERGED: partial(job.run, job.model, batch.inputs)}
    for name, variant in variants.items():
        models[name] = variant.attach(shallow_copy(job.model)) if variant.changes_model else job.model
        runs[name] = partial(job.run, models[name], variant.view(batch.inputs))
    with torch.inference_mode():
        seconds = interleave(runs, ROUNDS, warmup=1, device=job.model.device)
    pairs = {name: zip(seconds[name], seconds[UNMERGED]) for name in variants}
    return {name: median(merged / whole for merged, whole in both) for name, both in pairs.items()}

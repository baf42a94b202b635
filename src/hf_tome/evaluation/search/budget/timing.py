"""How long variants take on one batch, beside the unmerged model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def share_for(seconds: float, measured: Sequence[tuple[float, float]]) -> float:
    """Return the share of the cost that should take a share of the time.

    Between what was measured to take more and to take less it is interpolated, so that noise cannot lead far away;
    where nothing took less, the line from the unmerged model is followed.

    Args:
        seconds: the share of the time, below 1.
        measured: shares of the cost and of the time, the unmerged model's (1, 1) among them.
    """
    share, longer = min(pair for pair in measured if pair[1] > seconds)
    faster = max((pair for pair in measured if pair[1] <= seconds), default=None)
    if faster is not None:
        return faster[0] + (share - faster[0]) * (seconds - faster[1]) / (longer - faster[1])
    slope = (1 - longer) / (1 - share) if share < 1 else 0.0
    return share - (longer - seconds) / slope if slope > 0 else share * seconds / longer

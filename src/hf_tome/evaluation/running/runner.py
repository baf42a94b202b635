"""The evaluation loop: each variant is applied, run and removed on every batch, beside the unmerged model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from ...api import apply, remove
from ...config import MergeConfig
from ...profiling.rounds import clock_for
from ..data.splits import DataError
from ..distributed import DistributedContext, distributed_context
from ..environment import describe_environment
from ..job import Job
from ..model_state import plain_model
from ..options import JobOptions
from ..store.fingerprint import Identity
from ..store.lock import lock_folder
from ..store.results import Results, describe_data, nothing_readable
from ..store.rows import make_rows, shared_positions
from ..store.run_store import Records
from ..store.speed import doubtful_speeds
from ..variants import Variant, as_variants
from .batches import to_model
from .describe import describe_run, identify
from .loop import Loop, Progress

__all__ = ["Job", "JobOptions", "Progress", "Results", "evaluate", "to_model"]


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

    The unmerged model always runs, and comes first. Every batch runs through all configs, interleaved, in alternating
    order, so each batch is a round of timing: a speed-up is the median of the ratios within rounds, beside its
    quartiles. Where there are fewer than `loop.ROUNDS` batches, the last one is timed again. Timed is `job.run` alone,
    after one untimed batch for each config, by processor time on a CPU and by wall time on an accelerator.

    A model's merging and training mode are restored afterwards; `run["notes"]` of the results mentions them, and
    `run["warnings"]` which speeds should not be trusted, and why.

    Under `torchrun` every process takes whole batches of its own, so that each sample is seen once, in the company in
    which a single process would see it, and all return the same results.

    Args:
        job: the model, its data and how the two meet.
        configs: merge configs, or variants.
        batch_size: samples in a batch; halved where the GPU's memory is too small.
        on_progress: see `Progress`.
        out (`Path`, *optional*): folder in which each sample's results are kept as they come; a run that was killed
            resumes from there.
        speedups: without this, nothing is run only to be timed: neither the unmerged model again beside a config that
            an earlier run has not seen, nor a batch again.

    Raises:
        UnsupportedModelError: merging does not work on this model.
        ValueError: a config does not fit the model (found before anything runs), no sample could be read, or `out`
            holds samples of another run (see `describe.identify`) or another run is writing to it.
    """
    if batch_size < 1:
        raise ValueError(f"The batch size is {batch_size}; it takes an integer of at least 1.")
    variants = as_variants(configs, job.place)
    with plain_model(job.model) as notes:
        _check(job.model, variants)
        dist = distributed_context(job.model.device.type)
        with lock_folder(out, dist.is_main):
            records = _open_records(job, batch_size, out, dist)
            Loop(job, variants, records, batch_size, dist, on_progress, speedups).run()
            gathered = dist.gather(records.new)
    records.merge(gathered)
    positions = shared_positions(records, variants)
    if not positions:
        raise DataError(nothing_readable(job.data.name, job.data.split, records))
    rows = make_rows(records, variants, job.scorer, positions)
    notes = [*job.settings.get("notes", ()), *notes]
    run = {**describe_run(job, batch_size), "clock": clock_for(job.model.device), "processes": dist.size}
    remarks = {"notes": notes, "warnings": [*records.doubts_of_load(), *doubtful_speeds(rows)]}
    return Results(
        environment=records.describe_environment(),
        run={**run, **{key: lines for key, lines in remarks.items() if lines}},
        data=describe_data(job.data.name, job.data.split, job.data.left_out, records, positions),
        rows=rows,
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


def _check(model: PreTrainedModel, variants: Sequence[Variant]) -> None:
    for variant in variants:
        apply(model, variant.config)
        remove(model)

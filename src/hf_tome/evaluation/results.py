"""What an evaluation gave, and what it was run with and on, as plain JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .job import Job
from .records import Records, fingerprint
from .variants import UNMERGED


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


def describe_run(job: Job, batch_size: int) -> dict[str, Any]:
    """Return what was run and how, as plain values."""
    return {
        "task": job.task,
        "model": job.model_name,
        "dtype": str(job.model.dtype).removeprefix("torch."),
        "attention": job.model.config._attn_implementation,
        "batch_size": batch_size,
        **job.settings,
    }


def identity(job: Job) -> dict[str, Any]:
    """Return what else must be the same for a run to go on with another's samples."""
    return {
        "data": job.data.name,
        "split": job.data.split,
        "samples": len(job.data),
        "weights": fingerprint(job.model),
        "device": job.model.device.type,
    }


def describe_data(job: Job, records: Records) -> dict[str, Any]:
    """Return what it was run on, and what could not be read."""
    return {
        "id": job.data.name,
        "split": job.data.split,
        "num_samples": len(records.by_variant[UNMERGED]),
        "skipped": [
            {"sample": skipped.sample, "reason": skipped.reason} for _, skipped in sorted(records.skipped.items())
        ],
    }


def nothing_readable(job: Job, records: Records) -> str:
    """Return the message for a run without a single sample."""
    skipped = list(records.skipped.values())
    if not skipped:
        return f"Split {job.data.split!r} of {job.data.name} has no samples."
    first = skipped[0]
    return (
        f"None of the {len(skipped)} samples in split {job.data.split!r} of {job.data.name} could be read; the first "
        f"is {first.sample}: {first.reason}"
    )

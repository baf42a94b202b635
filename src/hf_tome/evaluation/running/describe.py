"""What a run is: everything that a sample's record depends on is named here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.samples import SampleInfo
from ..job import Job
from ..options import JobOptions
from ..store.fingerprint import Identity, digest, fingerprint


def describe_run(job: Job, batch_size: int) -> dict[str, Any]:
    """Return what was run and how, as plain values, which the results show."""
    return {
        "task": job.task,
        "model": job.model_name,
        "dtype": str(job.model.dtype).removeprefix("torch."),
        "attention": job.model.config._attn_implementation,
        "batch_size": batch_size,
        **(_draw(job.options) if job.options else {}),
        **job.settings,
    }


def identify(job: Job, batch_size: int, listed: Sequence[SampleInfo] | None) -> Identity:
    """Return the identity of a run; `listed` are the samples as `Data.listed` tells them."""
    values = {
        **describe_run(job, batch_size),
        "data": job.data.name,
        "split": job.data.split,
        "samples": len(job.data),
        "device": job.model.device.type,
    }
    digests = {"weights": fingerprint(job.model)}
    digests |= {name: digest(value) for name, value in job.depends_on.items()}
    place = _place(job.options) if job.options else None

    def with_limit(limit: int) -> Identity:
        samples = min(limit, values["samples"])  # 0 where a stream does not tell
        return _identity({**values, "limit": limit, "samples": samples}, digests, listed and listed[:limit], place)

    return replace(_identity(values, digests, listed, place), with_limit=with_limit)


def _identity(
    values: dict[str, Any], digests: dict[str, str], listed: Sequence[SampleInfo] | None, place: str | None
) -> Identity:
    digests = dict(digests)
    if listed is not None:
        digests["sample names"] = digest([info.name for info in listed])
        digests["labels"] = digest([info.label for info in listed])
        if any(info.prompt is not None for info in listed):
            digests["prompts"] = digest([info.prompt for info in listed])
    if place and not _are_told_apart(listed):
        return Identity(values, {**digests, "place of the data": place})
    return Identity(values, digests, place)


def _draw(options: JobOptions) -> dict[str, Any]:
    # Without a limit there is no draw, and nothing depends on the seed.
    return {"limit": options.limit, **({} if options.limit is None else {"seed": options.seed})}


def _place(options: JobOptions) -> str:
    """Return a digest, so that no record names a path of a machine."""
    if options.rows is not None:
        return digest(_rows_fingerprint(options.rows))
    path = Path(options.data).expanduser()
    return digest(str(path.resolve()) if path.exists() else options.data)


def _rows_fingerprint(rows: Any) -> Any:
    """Return what `datasets` knows a data set in memory by, of all splits where there are several."""
    if isinstance(rows, Mapping):
        return {name: _rows_fingerprint(part) for name, part in rows.items()}
    return getattr(rows, "_fingerprint", None)


def _are_told_apart(listed: Sequence[SampleInfo] | None) -> bool:
    """Tell whether samples have names of their own; those of a stream are not known, others are mere numbers."""
    return listed is not None and all(info.name != f"sample {position}" for position, info in enumerate(listed))

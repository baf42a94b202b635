"""What makes two runs the same one: everything that a sample's record depends on is named here, and nowhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data.samples import Listed
from ..job import Job, JobOptions

SAMPLED_WEIGHTS = 16
"""Numbers of each weight that go into the fingerprint of a model."""


@dataclass(frozen=True)
class Identity:
    """What must be the same for a run to go on with another's records.

    Attributes:
        values: what can be read, as plain values.
        digests: what is too long for that, by what it is of.
        place: a digest of where the data lie. Another place alone is no other run, as a job's scratch folder may be
            called differently each time, unless nothing but the place tells samples apart; then it is in `digests`.
    """

    values: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    place: str | None = None


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


def identify(job: Job, batch_size: int, listed: Sequence[Listed] | None) -> Identity:
    """Return the identity of a run; `listed` are the samples as `Data.listed` tells them."""
    values = {
        **describe_run(job, batch_size),
        "data": job.data.name,
        "split": job.data.split,
        "samples": len(job.data),
        "device": job.model.device.type,
    }
    digests = {"weights": fingerprint(job.model)}
    digests |= {what: digest(value) for what, value in job.depends_on.items()}
    if listed is not None:
        digests["sample names"] = digest([one.name for one in listed])
        digests["labels"] = digest([one.label for one in listed])
        if any(one.prompt is not None for one in listed):
            digests["prompts"] = digest([one.prompt for one in listed])
    place = _place(job.options) if job.options else None
    if place and not _are_told_apart(listed):
        return Identity(values, {**digests, "place of the data": place})
    return Identity(values, digests, place)


def digest(value: Any) -> str:
    """Return a few letters that differ between plain values that differ."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(model: torch.nn.Module) -> str:
    """Return a few letters that differ between models of different weights, from some numbers of every weight."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED_WEIGHTS)].double().cpu()
        found.update(f"{name} {tuple(tensor.shape)} {some.tolist()}".encode())
    return found.hexdigest()[:16]


def processor_settings(processor: Any) -> Any:
    """Return what a processor does to its inputs, as plain values; `None` for one that does not tell."""
    return processor.to_dict() if hasattr(processor, "to_dict") else None


def _draw(options: JobOptions) -> dict[str, Any]:
    # Without a limit there is no draw, and nothing depends on the seed.
    return {"limit": options.limit, **({} if options.limit is None else {"seed": options.seed})}


def _place(options: JobOptions) -> str:
    """Return a digest, so that no record names a path of a machine."""
    path = Path(options.data).expanduser()
    return digest(str(path.resolve()) if path.exists() else options.data)


def _are_told_apart(listed: Sequence[Listed] | None) -> bool:
    """Tell whether samples have names of their own; those of a stream are not known, others are mere numbers."""
    return listed is not None and all(one.name != f"sample {position}" for position, one in enumerate(listed))

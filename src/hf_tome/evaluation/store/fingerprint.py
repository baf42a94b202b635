"""Fingerprints of runs, weights and processors: a run resumes only with the same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

SAMPLED_WEIGHTS = 16
"""Numbers of each weight that go into the fingerprint of a model."""


@dataclass(frozen=True)
class Identity:
    """What must be equal for a run to resume another's records.

    Attributes:
        values: plain values that a message can show.
        digests: hashes of values too long to show, by what they are of.
        place: a digest of where the data lie. Another place alone does not make another run, as scratch folders
            differ between runs, unless only the place tells samples apart; then it is in `digests`.
        with_limit: gives the identity of the same run with a smaller `--limit`, whose samples are the first of these.
    """

    values: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    place: str | None = None
    with_limit: Callable[[int], Identity] | None = None

    def as_begun(self, begun: Mapping[str, Any]) -> Identity:
        """Return this identity, or that of its first samples where a run that was begun has a smaller limit."""
        earlier, now = begun.get("limit"), self.values.get("limit")
        if self.with_limit is None or not isinstance(earlier, int) or not isinstance(now, int) or earlier >= now:
            return self
        return self.with_limit(earlier)


def digest(value: Any) -> str:
    """Return a short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(model: torch.nn.Module) -> str:
    """Return a short hash of a model's weights, from some numbers of each."""
    hasher = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        numbers = flat[:: max(1, len(flat) // SAMPLED_WEIGHTS)].double().cpu()
        hasher.update(f"{name} {tuple(tensor.shape)} {numbers.tolist()}".encode())
    return hasher.hexdigest()[:16]


def processor_settings(processor: Any) -> Any:
    """Return a processor's settings as plain values; `None` where it has no `to_dict`."""
    return processor.to_dict() if hasattr(processor, "to_dict") else None

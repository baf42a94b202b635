"""Eviction from a cache, what merging has to beat there: by age, and by how much a key is like the others."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Merge
from ..method import MatchInputs, Method
from .attention import prune_lowest


def likeness(keys: Tensor) -> Tensor:
    """Return how much each key (B, N, D) points where all do, (B, N): its cosine with the mean direction (KeyDiff)."""
    directions = torch.nn.functional.normalize(keys.to(torch.float32), dim=-1)
    return torch.nn.functional.cosine_similarity(directions, directions.mean(dim=1, keepdim=True), dim=-1)


def _match_recent(inputs: MatchInputs) -> Merge:
    age = torch.arange(inputs.metric.shape[1], device=inputs.metric.device, dtype=torch.float32)
    scores = age.expand(inputs.metric.shape[:2])
    return prune_lowest(scores, inputs.r, inputs.num_prefix_tokens, size=inputs.size)


def _match_distinctive(inputs: MatchInputs) -> Merge:
    return prune_lowest(-likeness(inputs.metric), inputs.r, inputs.num_prefix_tokens, size=inputs.size)


RECENT = Method(
    "recent_prune",
    _match_recent,
    metric="x",
    proportional=False,
    drops_tokens=True,
    places=("cache",),
    label="recent entries",
    colour="#999999",
)
"""Keep the latest entries; with the first ones, which are protected, the form of StreamingLLM."""

KEYDIFF = Method(
    "keydiff_prune",
    _match_distinctive,
    metric="x",
    proportional=False,
    drops_tokens=True,
    places=("cache",),
    label="KeyDiff eviction",
    colour="#56b4e9",
)
"""Keep the most distinctive keys."""

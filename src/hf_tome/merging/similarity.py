"""How alike two sets of tokens are: the four distances of ToMe's table 1b and MaMe's figure 2b."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def clean(metric: Tensor) -> Tensor:
    """Return the metric in float32 at least, NaN and infinities as 0, so that such a token is like no other.

    Half precision is not enough to rank by: bfloat16 scores change 4 % of the chosen tokens and tie often.
    """
    metric = metric if metric.dtype == torch.float64 else metric.float()
    return torch.nan_to_num(metric, nan=0.0, posinf=0.0, neginf=0.0)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    a = torch.nn.functional.normalize(a, dim=-1)
    b = torch.nn.functional.normalize(b, dim=-1)
    return a @ b.transpose(-1, -2)


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    # -|a - b|^2, brought to [-1, 1] as 1 - |a - b|^2 / (|a|^2 + |b|^2): equal tokens score 1, opposite ones -1, so that
    # MaMe's threshold keeps its meaning. For tokens of equal length it is the cosine.
    lengths = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :]
    return 2 * (a @ b.transpose(-1, -2)) / lengths.clamp(min=torch.finfo(a.dtype).tiny)


def _negative_distance(a: Tensor, b: Tensor) -> Tensor:
    return -torch.cdist(a, b)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a @ b.transpose(-1, -2) * a.shape[-1] ** -0.5


def _softmax(a: Tensor, b: Tensor) -> Tensor:
    return torch.softmax(_dot(a, b), dim=-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": _cosine,
    "euclidean": _negative_distance,
    "dot": _dot,
    "softmax": _softmax,
}
"""Similarity by name, (B, S, D), (B, T, D) -> (B, S, T), higher is more alike; a softmax runs over T."""

BOUNDED_DISTANCES = {**DISTANCES, "euclidean": _euclidean}
"""The same, for MaMe: the Euclidean one brought to [-1, 1], where a threshold can be set."""


def lookup(distance: str, table: dict[str, Callable[[Tensor, Tensor], Tensor]] = DISTANCES) -> Callable:
    """Return the similarity function of a name.

    Raises:
        ValueError: an unknown name.
    """
    if distance not in table:
        raise ValueError(f"`distance` is {distance!r}; it takes one of {', '.join(map(repr, table))}.")
    return table[distance]

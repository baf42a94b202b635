"""How alike two sets of tokens are: the four distances of ToMe's table 1b and MaMe's figure 2b."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .indexing import Positions, has_cpu_values, is_traced, take

Distance = Callable[[Tensor, Tensor, Tensor], Tensor]

AUTOCAST_DEVICES = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia")
"""Types of devices that have autocast in every supported version of torch."""
TOO_LONG = 1e18
"""A token of this length is broken: products of two such would come near what single precision holds."""
LOWEST = -8e37
"""A score lower than those of sound tokens, which is finite when two of it are added."""
BLOCK = 2**20
"""Scores that are computed at once where an image, or a head of a cache, has more of them: those of a block stay in a
processor's cache, and memory grows with the tokens instead of with their square."""
STRETCH = 32
"""Scores of a row among which a maximum is looked for at once; see `row_maximum`."""


def similarity(
    metric: Tensor,
    sources: Positions,
    destinations: Positions,
    distance: str,
    padding: Tensor | None = None,
    *,
    bounded: bool = False,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return how alike sources and destinations are, (B, S, T), higher is more alike, and a bias (B, S) to add.

    In float32 at least: bfloat16 scores change 4 % of the chosen tokens, and tie often. A token that holds a NaN or an
    infinity, or is too long to multiply, is like no other: it scores lower than all that are sound. Padding scores
    minus infinity. Of the sources, the bias says so: adding it to a row's maximum is cheaper than to every entry.

    Args:
        metric (`Tensor`): (B, N, D).
        sources, destinations (`Tensor` or `slice`): positions, (S,) and (T,), (B, S) and (B, T), or slices of all.
        distance (`str`): a name in `DISTANCES`.
        padding (`Tensor`, *optional*): (B, N) bool.
        importance (`Tensor`, *optional*): (B, N), by which the distance of a pair is multiplied: by 1 and what both of
            its tokens have. The distance is what a score lacks of `HIGHEST`.
        bounded (`bool`): bring the Euclidean distance to [-1, 1], where a threshold can be set, as cosines are.

    Raises:
        ValueError: an unknown distance, or one without a highest score together with `importance`.
    """
    table = BOUNDED_DISTANCES if bounded else DISTANCES
    metric, bias = _prepare(metric, distance, table, padding)
    a, b = take(metric, sources), take(metric, destinations)
    added = None if bias is None else take(bias, destinations)[:, None]
    of_sources = a.new_zeros(a.shape[:2]) if bias is None else take(bias, sources)
    if importance is None:
        return _scores(a, b, added, distance, table), of_sources
    scores = _scores(a, b, None, distance, table)  # (B, S, T)
    of_source, of_destination = (take(importance.to(metric), rows) for rows in (sources, destinations))
    scores = _weighted(scores, of_source, of_destination, distance)
    return scores if added is None else scores + added, of_sources


def best_matches(
    metric: Tensor,
    sources: Tensor,
    destinations: Tensor,
    distance: str,
    padding: Tensor | None = None,
    *,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return each source's highest score (B, S), its bias included, and the index of that destination, (B, S).

    As `similarity` would, a block of sources at a time; `causal` leaves out destinations that come before a source.
    """
    metric, bias = _prepare(metric, distance, DISTANCES, padding)
    b, added = take(metric, destinations), None if bias is None else take(bias, destinations)[:, None]
    num_rows = max(BLOCK // (b.shape[0] * b.shape[1]), 1)
    best, partner = [], []
    for block in sources.split(num_rows, dim=-1):
        scores = _scores(take(metric, block), b, added, distance, DISTANCES)
        if causal:
            scores = scores.masked_fill(block[..., :, None] > destinations[..., None, :], -torch.inf)
        highest, index = row_maximum(scores)
        best.append(highest if bias is None else highest + take(bias, block))
        partner.append(index)
    return torch.cat(best, dim=1), torch.cat(partner, dim=1)


def row_maximum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of each row (B, S, T) and the first place that has it.

    Finding a place costs a CPU several times finding a maximum, so that it is looked for in the best stretch alone.
    """
    num_columns = scores.shape[-1]
    num_stretches = num_columns // STRETCH
    if scores.device.type != "cpu" or num_stretches < STRETCH:
        return scores.max(dim=-1)
    whole = scores[..., : num_stretches * STRETCH].unflatten(-1, (num_stretches, STRETCH)).amax(dim=-1)
    if num_stretches * STRETCH < num_columns:
        rest = scores[..., num_stretches * STRETCH :].amax(dim=-1, keepdim=True)
        whole = torch.cat([whole, rest], dim=-1)  # (B, S, T / STRETCH)
    highest, stretch = whole.max(dim=-1)
    places = stretch[..., None] * STRETCH + torch.arange(STRETCH)
    inside = scores.gather(-1, places.clamp(max=num_columns - 1)).argmax(dim=-1)
    return highest, stretch * STRETCH + inside


def is_large(num_sources: int, num_destinations: int) -> bool:
    """Return whether the scores of an image are too many to be computed at once; never in a traced graph."""
    return not is_traced() and num_sources * num_destinations > BLOCK


def _prepare(
    metric: Tensor, distance: str, table: Mapping[str, Distance], padding: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the metric without broken tokens, and the bias of every token, `None` for no bias; see `similarity`."""
    if distance not in table:
        raise ValueError(f"`distance` is {distance!r}; it takes one of {', '.join(map(repr, table))}.")
    metric, bias = _sound(metric, unit=distance == "cosine")
    if padding is not None:
        bias = metric.new_zeros(padding.shape) if bias is None else bias
        bias = bias.masked_fill(padding, -torch.inf)
    return metric, bias


def _scores(a: Tensor, b: Tensor, bias: Tensor | None, distance: str, table: Mapping[str, Distance]) -> Tensor:
    """Return the scores of (B, S, D) and (B, T, D), (B, S, T), with a bias (B, 1, T) added."""
    with full_precision(a.device):
        if distance == "cosine" and bias is None:
            return torch.bmm(a, b.transpose(1, 2))
        return table[distance](a, b, a.new_zeros((a.shape[0], 1, b.shape[1])) if bias is None else bias)


def _weighted(scores: Tensor, of_source: Tensor, of_destination: Tensor, distance: str) -> Tensor:
    # (B, S, T), (B, S) and (B, T) -> (B, S, T): scores of 0 and less
    if distance not in HIGHEST:
        raise ValueError(
            f"`distance` is {distance!r}, which has no highest score, so that no importance can weigh how far a pair "
            f"is from it; use one of {', '.join(map(repr, HIGHEST))}."
        )
    weights = (1 + of_source)[:, :, None] + of_destination[:, None]
    return weights.mul_(scores - HIGHEST[distance])


def is_zero(bias: Tensor) -> bool:
    """Return whether a bias may be left out: on a CPU looking is cheaper than writing it into every score."""
    return has_cpu_values(bias) and not bool(bias.any())


def full_precision(device: torch.device) -> AbstractContextManager:
    """Return a context in which autocast leaves products as precise as their factors."""
    if _has_autocast(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _has_autocast(device_type: str) -> bool:
    # Dynamo before torch 2.9 cannot trace the call; marking it as constant would import dynamo here, which takes long.
    return device_type in AUTOCAST_DEVICES or (not is_traced() and torch.amp.is_autocast_available(device_type))


def sound(metric: Tensor, *, unit: bool = False) -> tuple[Tensor, Tensor]:
    """Return the metric (B, N, D) in float32 at least, with broken tokens as zeros, and a bias (B, N) against those.

    `unit` brings the others to length 1.
    """
    metric, bias = _sound(metric, unit)
    return metric, metric.new_zeros(metric.shape[:2]) if bias is None else bias


def _sound(metric: Tensor, unit: bool) -> tuple[Tensor, Tensor | None]:
    """Return what `sound` does, with a bias of `None` where no token is broken: on a CPU looking is cheap."""
    metric = metric.to(torch.promote_types(metric.dtype, torch.float32))
    if has_cpu_values(metric):
        length = torch.linalg.vector_norm(metric, dim=-1)
        if bool((length < TOO_LONG).all()):
            return metric * (1 / length.clamp(min=1e-12))[..., None] if unit else metric, None
    metric = metric.nan_to_num(torch.finfo(metric.dtype).max)
    length = torch.linalg.vector_norm(metric, dim=-1)
    is_sound = length < TOO_LONG
    scale = 1 / length.clamp(min=1e-12) if unit else is_sound.to(metric.dtype)
    return metric * scale[..., None], torch.where(is_sound, 0.0, LOWEST).to(metric.dtype)


def _product(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, a, b.transpose(1, 2))


def _bounded_euclidean(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    # -|a - b|^2, brought to [-1, 1] as 1 - |a - b|^2 / (|a|^2 + |b|^2): equal tokens score 1, opposite ones -1, so
    # that MaMe's threshold keeps its meaning. For tokens of equal length it is the cosine.
    lengths = a.square().sum(-1)[:, :, None] + b.square().sum(-1)[:, None]
    return 2 * (a @ b.transpose(1, 2)) / lengths.clamp(min=torch.finfo(a.dtype).tiny) + bias


def _negative_distance(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    return bias - torch.cdist(a, b)


def _dot(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, a, b.transpose(1, 2), alpha=a.shape[-1] ** -0.5)


def _softmax(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    # Minus infinity throughout a row would make it NaN.
    return _dot(a, b, bias.clamp(min=LOWEST)).softmax(dim=-1) + bias


DISTANCES: dict[str, Distance] = {
    "cosine": _product,  # of tokens of length 1
    "euclidean": _negative_distance,
    "dot": _dot,
    "softmax": _softmax,
}
"""Similarity by name, (B, S, D), (B, T, D) -> (B, S, T), with a bias (B, 1, T) added; a softmax runs over T."""

HIGHEST = {"cosine": 1.0, "euclidean": 0.0, "softmax": 1.0}
"""The score of equal tokens, or one that none exceeds, where there is such a score."""

BOUNDED_DISTANCES = {**DISTANCES, "euclidean": _bounded_euclidean}

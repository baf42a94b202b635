"""Merge a span of entries to so many, in as many rounds as it takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....merging.base import Merge
from ....merging.indexing import take
from ....merging.method import MatchInputs
from ....merging.pruning.cache import likeness
from ..rule import Rule
from .attended import FutureQueries, Turning
from .entries import Entries, join

HALVINGS, HALVINGS_FITTED = 1.15, 0.42
"""How often a round halves the entries at most. Protected entries leave a little less than half to the others at a
`keep_ratio` of a half, which is still one round. Sizes are fitted anew in each round, and were better in several small
ones: of the KL of the best eviction 0.48 at a half in three rounds, 0.69 in one (six documents)."""


def merge_span(
    entries: Entries, begin: int, end: int, target: int, rule: Rule, turning: Turning, future: FutureQueries | None
) -> Entries:
    """Merge the entries from `begin` to `end`, without padding, until `target` of them are left.

    Each KV head merges by itself; sizes compose over rounds. With a threshold there is one round, and a head that
    keeps fewer than others is filled up with entries of size 0.
    """
    seed = rule.seed + rule.layer
    mass, total = (None, None) if future is None else future.mass(entries)
    received = None if mass is None else mass[:, :, begin:end]
    for wanted in _rounds(end - begin, max(target, 1), rule):
        span = entries.part(begin, end)
        merge = _match(span, wanted, rule, turning, received, seed)
        if merge.num_output == span.length:
            break
        span, received = _merged(span, merge, rule, future, received, total)
        entries = join([entries.part(0, begin), span, entries.part(end, entries.length)])
        end, seed = begin + span.length, seed + rule.num_layers
        if received is None and future is not None:  # what was dropped leaves its attention to the others
            received = future.mass(entries)[0][:, :, begin:end]
    return entries


def _rounds(num_entries: int, target: int, rule: Rule) -> list[int]:
    """Return how many entries each round leaves, the last one `target`; 0 where the threshold decides."""
    if rule.keep_ratio is None:
        return [0]
    if target >= num_entries:
        return []
    if rule.destinations == "keydiff":
        return [target]
    if _can_choose(rule):
        count = math.ceil(math.log2(num_entries / target) / (HALVINGS_FITTED if rule.fits_sizes else HALVINGS))
        shares = ((target / num_entries) ** (step / count) for step in range(1, count + 1))
        return [left for left in dict.fromkeys(round(num_entries * share) for share in shares) if left < num_entries]
    left, rounds = num_entries, []
    while left > target:
        left = max(left - left // 2, target)
        rounds.append(left)
    return rounds


def _can_choose(rule: Rule) -> bool:
    """Return whether any number of entries, evenly spread, can be the destinations of the others."""
    return rule.method.bipartite and rule.fields.get("partition") == "alternating"


def _match(span: Entries, wanted: int, rule: Rule, turning: Turning, received: Tensor | None, seed: int) -> Merge:
    """Match entries so that `wanted` of them are left; 0: the threshold decides."""
    num_entries, fields = span.length, dict(rule.fields)
    positions = span.positions
    if bool((positions == positions[:, :1]).all()):  # as before the first merge: one table for all heads
        positions = positions[:, :1]
    metric = turning.back(span.keys, positions).flatten(0, 1)  # (B, H, n, D) -> (B * H, n, D)
    if rule.method.metric == "received" and received is not None:
        metric = received.flatten(0, 1)  # (B * H, n)
    destinations = _destinations(span, wanted, rule) if wanted and rule.method.bipartite else None
    if wanted and "keep_ratio" in fields:
        fields["keep_ratio"] = (wanted - 0.5) / num_entries  # which rounds up to as many as are wanted
        fields["keep_ratio"] = max(fields["keep_ratio"], 0.5) if destinations is None else fields["keep_ratio"]
    inputs = MatchInputs(
        metric,
        num_entries - wanted if wanted and rule.method.takes_r else 0,
        seed=seed,
        layer=rule.layer,
        num_layers=rule.num_layers,
        fields=fields,
        causal=rule.causal,
        destinations=destinations,
    )
    with torch.no_grad():
        return rule.method(inputs)


def _destinations(span: Entries, count: int, rule: Rule) -> Tensor | None:
    """Return the entries (B * H, count) that others merge into, ascending; `None` where the method splits by itself.

    The last entry is always among them, so that every other one has one behind it.
    """
    if rule.destinations == "keydiff":
        return distinctive(span.keys.flatten(0, 1), count)
    if not _can_choose(rule) or 2 * count >= span.length:
        return None
    even = (torch.arange(1, count + 1, device=span.keys.device) * span.length).div(count, rounding_mode="floor") - 1
    return even.expand(span.keys.shape[0] * span.keys.shape[1], -1)


def _merged(
    span: Entries, merge: Merge, rule: Rule, future: FutureQueries | None, mass: Tensor | None, total: Tensor | None
) -> tuple[Entries, Tensor | None]:
    """Return the span after a merge, in order of position; with fitted sizes also the attention that each receives."""
    num_heads = span.keys.shape[:2]
    rows = span.each(lambda x: x.flatten(0, 1))  # (B, H, n, ...) -> (B * H, n, ...)
    fits = rule.fits_sizes and not rule.method.drops_tokens
    weights = rows.sizes if not fits or mass is None else mass.flatten(0, 1).clamp(min=1e-30)
    keys, _ = merge.merge(rows.keys.to(torch.float32), weights[..., None])
    values, gathered = merge.merge(rows.values.to(torch.float32), weights[..., None])
    counts = gathered[..., 0]
    if weights is not rows.sizes:
        _, counts = merge.merge(rows.sizes[..., None], rows.sizes[..., None])
        counts = counts[..., 0]
    merged = Entries(
        keys.to(span.keys.dtype),
        values.to(span.values.dtype),
        counts,
        rows.positions.gather(1, merge.representative),
    ).each(lambda x: x.unflatten(0, num_heads))
    order = merged.positions.argsort(dim=2, stable=True)
    if not fits or future is None or total is None:
        return merged.each(lambda x: _reorder(x, order)), None
    together = gathered[..., 0].unflatten(0, num_heads)
    sizes = future.fitted(merged.keys, together, total, merged.sizes)
    merged = merged._replace(sizes=torch.where(merged.sizes > 0, sizes, 0))
    return merged.each(lambda x: _reorder(x, order)), _reorder(together, order)


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    return take(x.flatten(0, 1), order.flatten(0, 1)).unflatten(0, order.shape[:2])


def distinctive(keys: Tensor, count: int) -> Tensor:
    """Return the positions (B, count) of the keys (B, N, D) least like the mean direction (KeyDiff), and the last."""
    scores = likeness(keys)
    scores[:, -1] = -torch.inf
    return scores.topk(count, dim=1, largest=False).indices.sort(dim=1).values

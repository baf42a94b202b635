"""Merge a span of entries to so many, in as many rounds as it takes."""

from __future__ import annotations

import torch
from torch import Tensor

from ....merging.base import Merge
from ....merging.method import MatchInputs
from ....merging.pruning.cache import likeness
from ..rule import Rule
from .attended import FutureQueries, Turning
from .entries import Entries, join


def merge_span(
    entries: Entries, begin: int, end: int, target: int, rule: Rule, turning: Turning, future: FutureQueries | None
) -> Entries:
    """Merge the entries from `begin` to `end`, without padding, until `target` of them are left.

    Each KV head merges by itself. A round takes half of the entries away at most; sizes compose over rounds. With a
    threshold there is one round, and a head that keeps fewer than others is filled up with entries of size 0.
    """
    seed = rule.seed + rule.layer
    while end - begin > max(target, 1):
        span = entries.part(begin, end)
        mass, total = (None, None) if future is None else future.mass(entries)
        received = None if mass is None else mass[:, :, begin:end]
        merge = _match(span, target, rule, turning, received, seed)
        if merge.num_output == span.length:
            break
        span = _merged(span, merge, rule, future, received, total)
        entries = join([entries.part(0, begin), span, entries.part(end, entries.length)])
        end, seed = begin + span.length, seed + rule.num_layers
        if rule.keep_ratio is None:
            break
    return entries


def _match(span: Entries, target: int, rule: Rule, turning: Turning, received: Tensor | None, seed: int) -> Merge:
    num_entries, fields = span.length, dict(rule.fields)
    metric = turning.back(span.keys, span.positions).flatten(0, 1)  # (B, H, n, D) -> (B * H, n, D)
    if rule.method.metric == "received" and received is not None:
        metric = received.flatten(0, 1)  # (B * H, n)
    destinations, most = None, num_entries // 2
    if rule.destinations == "keydiff" and rule.keep_ratio is not None:
        destinations, most = distinctive(span.keys.flatten(0, 1), target), num_entries
    r = min(num_entries - target, most) if rule.keep_ratio is not None else 0
    if rule.keep_ratio is not None and "keep_ratio" in fields:
        fields["keep_ratio"] = (num_entries - r - 0.5) / num_entries  # which rounds up to as many as are left
        fields["keep_ratio"] = max(fields["keep_ratio"], 0.5) if destinations is None else fields["keep_ratio"]
    inputs = MatchInputs(
        metric,
        r if rule.method.takes_r else 0,
        seed=seed,
        layer=rule.layer,
        num_layers=rule.num_layers,
        fields=fields,
        causal=rule.causal,
        destinations=destinations,
    )
    with torch.no_grad():
        return rule.method(inputs)


def _merged(
    span: Entries, merge: Merge, rule: Rule, future: FutureQueries | None, mass: Tensor | None, total: Tensor | None
) -> Entries:
    """Return the span after a merge, in order of position."""
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
    if fits and future is not None and total is not None:
        together = gathered[..., 0].unflatten(0, num_heads)
        sizes = future.fitted(merged.keys, together, total, merged.sizes)
        merged = merged._replace(sizes=torch.where(merged.sizes > 0, sizes, 0))
    order = merged.positions.argsort(dim=2, stable=True)
    return merged.each(lambda x: _reorder(x, order))


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(2, order if x.ndim == 3 else order[..., None].expand(*order.shape, x.shape[-1]))


def distinctive(keys: Tensor, count: int) -> Tensor:
    """Return the positions (B, count) of the keys (B, N, D) least like the mean direction (KeyDiff), ascending.

    The last key is always among them, so that every other one has one behind it.
    """
    scores = likeness(keys)
    scores[:, -1] = -torch.inf
    return scores.topk(count, dim=1, largest=False).indices.sort(dim=1).values

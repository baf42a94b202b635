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
from .pair_costs import match_by_change

HALVINGS, HALVINGS_FITTED, HALVINGS_KEYDIFF = 1.15, 0.21, 0.42
"""How often a round halves the entries at most. Protected entries leave a little less than half to the others at a
`keep_ratio` of a half, which is still one round. With fitted sizes several small ones were better."""
ELSEWHERE, ELSEWHERE_KEYDIFF, ELSEWHERE_DESTINATION = 0.3, 1.0, 4.0
"""How much attention is taken to be spread evenly over the entries, beside the 1 that the queries at hand pay them:
what is looked up later may receive next to nothing from the prompt itself. It counts in averages and in costs; the
last number is counted besides, in averages alone, for distinctive destinations, which so stay what they are."""


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
    num_before = end - begin
    for wanted in _rounds(num_before, max(target, 1), rule):
        span = entries.part(begin, end)
        merge = _match(span, wanted, rule, turning, received, seed)
        if merge.num_output == span.length:
            break
        span, received = _merged(span, merge, rule, received)
        entries = join([entries.part(0, begin), span, entries.part(end, entries.length)])
        end, seed = begin + span.length, seed + rule.num_layers
        if received is None and future is not None:  # what was dropped leaves its attention to the others
            received = future.mass(entries)[0][:, :, begin:end]
    if end - begin < num_before and _fits(rule) and future is not None and received is not None and total is not None:
        span = entries.part(begin, end)
        sizes = future.fitted(span.keys, received, total, span.sizes).where(span.sizes > 0, 0)
        span = span._replace(sizes=sizes)
        entries = join([entries.part(0, begin), span, entries.part(end, entries.length)])
    return entries


def _fits(rule: Rule) -> bool:
    """Return whether the sizes of what has merged are fitted to queries."""
    return rule.fits_sizes and not rule.method.drops_tokens


def _rounds(num_entries: int, target: int, rule: Rule) -> list[int]:
    """Return how many entries each round leaves, the last one `target`; 0 where the threshold decides."""
    if rule.keep_ratio is None:
        return [0]
    if target >= num_entries:
        return []
    is_keydiff = rule.destinations == "keydiff"
    if is_keydiff and not _weighs_change(rule):
        return [target]
    if _can_choose(rule):
        fitted = HALVINGS_KEYDIFF if is_keydiff else HALVINGS_FITTED
        count = math.ceil(math.log2(num_entries / target) / (fitted if rule.fits_sizes else HALVINGS))
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
    if received is not None and _weighs_change(rule):
        if destinations is None:
            destinations = torch.arange(1, num_entries, 2, device=metric.device).expand(metric.shape[0], -1)
        weights = _weights(span, received, rule).flatten(0, 1)
        values = span.values.flatten(0, 1)
        with torch.no_grad():
            return match_by_change(
                metric, values, weights, wanted, destinations, causal=rule.causal, combine=fields["combine"]
            )
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


def _weighs_change(rule: Rule) -> bool:
    """Return whether pairs are matched by what merging them changes; else by the method's own similarity."""
    is_plain = rule.fields.get("partition") == "alternating" and rule.fields.get("distance") == "cosine"
    return _fits(rule) and rule.method.bipartite and rule.method.takes_r and is_plain


def _weights(span: Entries, received: Tensor, rule: Rule) -> Tensor:
    """Return what entries weigh in averages, (B, H, n): the attention that they receive, and a share of any other."""
    elsewhere = ELSEWHERE_KEYDIFF if rule.destinations == "keydiff" else ELSEWHERE
    share = span.sizes / span.sizes.sum(dim=2, keepdim=True)
    return received + elsewhere * share + 1e-30


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


def _merged(span: Entries, merge: Merge, rule: Rule, received: Tensor | None) -> tuple[Entries, Tensor | None]:
    """Return the span after a merge, in order of position; with fitted sizes also the attention that each receives."""
    num_heads = span.keys.shape[:2]
    rows = span.each(lambda x: x.flatten(0, 1))  # (B, H, n, ...) -> (B * H, n, ...)
    has_mass = _fits(rule) and received is not None
    weights = _weights(span, received, rule).flatten(0, 1) if has_mass else rows.sizes  # type: ignore[arg-type]
    if has_mass and rule.destinations == "keydiff":
        more = ELSEWHERE_DESTINATION * rows.sizes / rows.sizes.sum(dim=1, keepdim=True)
        weights = weights.scatter_add(1, merge.representative, more.gather(1, merge.representative))
    keys, counts = merge.merge(rows.keys.to(torch.float32), weights[..., None])
    values, _ = merge.merge(rows.values.to(torch.float32), weights[..., None])
    if has_mass:
        counts = _total(merge, rows.sizes)
    merged = Entries(
        keys.to(span.keys.dtype),
        values.to(span.values.dtype),
        counts[..., 0],
        rows.positions.gather(1, merge.representative),
    ).each(lambda x: x.unflatten(0, num_heads))
    order = merged.positions.argsort(dim=2, stable=True)
    merged = merged.each(lambda x: _reorder(x, order))
    if not has_mass:
        return merged, None
    together = _total(merge, received.flatten(0, 1).clamp(min=1e-30))[..., 0]  # type: ignore[union-attr]
    return merged, _reorder(together.unflatten(0, num_heads), order)


def _total(merge: Merge, amounts: Tensor) -> Tensor:
    """Return the sums (B, M, 1) of amounts (B, N) over what merges."""
    return merge.merge(amounts[..., None], amounts[..., None])[1]


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    return take(x.flatten(0, 1), order.flatten(0, 1)).unflatten(0, order.shape[:2])


def distinctive(keys: Tensor, count: int) -> Tensor:
    """Return the positions (B, count) of the keys (B, N, D) least like the mean direction (KeyDiff), and the last."""
    scores = likeness(keys)
    scores[:, -1] = -torch.inf
    return scores.topk(count, dim=1, largest=False).indices.sort(dim=1).values

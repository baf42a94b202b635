"""MaMe's row in the table of methods."""

from __future__ import annotations

from ..base import Merge
from ..method import Fields, GridInputs, MatchInputs, Method, two_halves
from .matching import kept_tokens, matrix_matching
from .tiled import tiled_matrix_matching


def _match(inputs: MatchInputs) -> Merge:
    fields = inputs.fields
    return matrix_matching(
        inputs.metric,
        fields["threshold"],
        inputs.num_prefix_tokens,
        adaptive_pruning=fields["adaptive_pruning"],
        batching=fields["batching"],
        keep_ratio=fields["keep_ratio"],
        size=inputs.size,
        distance=fields["distance"],
        partition=fields["partition"],
        seed=inputs.seed,
        causal=inputs.causal,
        destinations=inputs.destinations,
    )


def _match_grid(inputs: GridInputs) -> Merge:
    fields = inputs.fields
    return tiled_matrix_matching(
        inputs.metric,
        inputs.shape,
        threshold=fields["threshold"],
        keep_ratio=fields["keep_ratio"],
        adaptive_pruning=fields["adaptive_pruning"],
        tile=inputs.tile,
        stride=inputs.stride,
        seed=inputs.seed,
    )


def _first_two_thirds(num_layers: int) -> range:
    return range(2 * num_layers // 3)


def _planned_tokens(num_tokens: int, num_prefix_tokens: int, r: int, fields: Fields) -> int | None:
    if fields["keep_ratio"] is None:
        return None
    return num_prefix_tokens + kept_tokens(num_tokens - num_prefix_tokens, fields["keep_ratio"])


def _compared_pairs(before: float, after: float, num_prefix_tokens: int, fields: Fields) -> float:
    return two_halves(before - num_prefix_tokens)


METHOD = Method(
    "mame",
    _match,
    match_grid=_match_grid,
    fields=("threshold", "adaptive_pruning", "keep_ratio", "batching", "distance", "partition", "seed"),
    defaults={"metric": "x", "head_aggregation": "concat"},
    proportional=False,
    bipartite=True,
    layers=_first_two_thirds,
    planned_tokens=_planned_tokens,
    compared_pairs=_compared_pairs,
    search_field="threshold",
    search_values=tuple(step / 100 for step in range(98, 38, -2)),  # hardly anything merges to nearly everything
    label="MaMe",
    colour="#d55e00",
)

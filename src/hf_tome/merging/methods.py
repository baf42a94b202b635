"""From a method's name to the merge of one block: the table of methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..config import MergeConfig
from . import Merge, bipartite_soft_matching, greedy_matching, kmeans, matrix_matching, prune_lowest, prune_random


@dataclass(frozen=True)
class Request:
    """One block's wish: `metric` (B, N, D) or scores (B, N), `r` tokens, and what is known of the tokens."""

    metric: Tensor
    r: int
    num_special: int
    size: Tensor | None
    seed: int
    config: MergeConfig


def _tome(request: Request) -> Merge:
    config = request.config
    return bipartite_soft_matching(
        request.metric,
        request.r,
        num_special=request.num_special,
        size=request.size,
        distance=config.choice("distance"),
        partition=config.choice("partition"),
        combine=config.choice("combine"),
        seed=request.seed,
    )


def _mame(request: Request) -> Merge:
    config = request.config
    return matrix_matching(
        request.metric,
        config.threshold,
        request.num_special,
        adaptive_pruning=config.adaptive_pruning,
        batching=config.batching,
        keep_ratio=config.keep_ratio,
        size=request.size,
        distance=config.choice("distance"),
        partition=config.choice("partition"),
        seed=request.seed,
    )


def _random_prune(request: Request) -> Merge:
    batch_size, num_tokens = request.metric.shape[:2]
    return prune_random(
        batch_size,
        num_tokens,
        request.r,
        request.num_special,
        request.metric.device,
        seed=request.seed,
        size=request.size,
    )


def _attention_prune(request: Request) -> Merge:
    return prune_lowest(request.metric, request.r, request.num_special, size=request.size)


def _kmeans(request: Request) -> Merge:
    return kmeans(
        request.metric,
        request.r,
        request.num_special,
        iterations=request.config.kmeans_iterations,
        size=request.size,
        combine=request.config.choice("combine"),
        seed=request.seed,
    )


def _greedy(request: Request) -> Merge:
    return greedy_matching(
        request.metric,
        request.r,
        request.num_special,
        size=request.size,
        distance=request.config.choice("distance"),
        combine=request.config.choice("combine"),
    )


@dataclass(frozen=True)
class Method:
    """A row of the table of methods.

    Attributes:
        match: makes the merge.
        feature: what it looks at: `None` for the config's `metric`, else a fixed one.
        proportional: whether `proportional_attention="auto"` leaves the choice to the family; off if `False`.
        prunes: whether tokens are dropped, so that they cannot be given back.
    """

    match: Callable[[Request], Merge]
    feature: str | None = None
    proportional: bool = True
    prunes: bool = False


METHODS: dict[str, Method] = {
    "tome": Method(_tome),
    "mame": Method(_mame, proportional=False),
    "random_prune": Method(_random_prune, feature="x", proportional=False, prunes=True),
    "attention_prune": Method(_attention_prune, feature="received", proportional=False, prunes=True),
    "kmeans": Method(_kmeans),
    "greedy": Method(_greedy),
}

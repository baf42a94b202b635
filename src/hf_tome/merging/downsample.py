"""Downsampling the grid of a denoiser: neighbours merge, whatever they look like; what matching has to beat."""

from __future__ import annotations

from dataclasses import replace

from .base import Merge
from .method import GridInputs, MatchInputs, Method
from .partition import pseudo_random
from .tiles import own_cell_matching


def _match(inputs: MatchInputs) -> Merge:
    raise NotImplementedError("`MergeConfig` rejects this method where tokens are not unmerged")


def _match_grid(inputs: GridInputs) -> Merge:
    """Average tokens into a fixed one of their cell, at places that are the same in every step and block."""
    num_tokens = inputs.metric.shape[1]
    fixed = replace(inputs, seed=0)
    return own_cell_matching(fixed, pseudo_random(num_tokens, 1, inputs.metric.device), combine="weighted_mean")


METHOD = Method(
    "downsample",
    _match,
    match_grid=_match_grid,
    places=("auto", "denoiser"),
    grid_proportional=False,
    label="downsampling",
    colour="#999999",
)

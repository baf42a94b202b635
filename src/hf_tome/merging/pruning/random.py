"""Random pruning: drop tokens at random, what merging has to beat (ToMe, table 2, "random")."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Merge
from ..method import GridInputs, MatchInputs, Method
from ..partition import pseudo_random
from ..tiles import own_cell_matching
from .attention import prune_lowest


def prune_random(
    batch_size: int,
    num_tokens: int,
    r: int,
    num_special: int,
    device: torch.device,
    *,
    seed: int = 0,
    size: Tensor | None = None,
) -> Merge:
    """Drop `r` random tokens, the same positions in every image and on every device (ToMe, table 2, "random")."""
    score = pseudo_random(num_tokens, seed, device).float()
    return prune_lowest(score.expand(batch_size, -1), r, num_special, size=size)


def _match(inputs: MatchInputs) -> Merge:
    batch_size, num_tokens = inputs.metric.shape[:2]
    return prune_random(
        batch_size,
        num_tokens,
        inputs.r,
        inputs.num_prefix_tokens,
        inputs.metric.device,
        seed=inputs.seed,
        size=inputs.size,
    )


def _match_grid(inputs: GridInputs) -> Merge:
    """Leave random tokens out of a block; each copies the change of the token that stays of its own cell."""
    scores = pseudo_random(inputs.metric.shape[1], inputs.seed + 1, inputs.metric.device)
    return own_cell_matching(inputs, scores, combine="keep_one")


METHOD = Method(
    "random_prune",
    _match,
    match_grid=_match_grid,
    grid_proportional=False,
    fields=("r", "seed"),
    metric="x",
    proportional=False,
    drops_tokens=True,
    label="random pruning",
    colour="#cc79a7",
)

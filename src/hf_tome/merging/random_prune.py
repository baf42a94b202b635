"""Random pruning: drop tokens at random, what merging has to beat (ToMe, table 2, "random")."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_prune import prune_lowest
from .base import Merge
from .method import MatchInputs, Method
from .partition import pseudo_random


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


METHOD = Method(
    "random_prune",
    _match,
    fields=("r", "seed"),
    metric="x",
    proportional=False,
    drops_tokens=True,
    label="random pruning",
    colour="#cc79a7",
)

"""MaMe as the downsampling of a hierarchical model: a quarter of a grid's tokens, on a grid again."""

from __future__ import annotations

import torch
from torch import Tensor

from ..indexing import take
from ..similarity import full_precision
from .fusion_weights import fusion_weights
from .scores import paired_scores


def matrix_downsample(x: Tensor, grid: tuple[int, int], threshold: float = 0.5, eps: float = 1e-6) -> Tensor:
    """Merge a grid's tokens into the first of each cell of two by two (MaMe, equations 2 to 9).

    A source may go into any destination of the image that is similar enough. One that is like none is dropped.

    Args:
        x (`Tensor`): (B, H*W, C), row by row.
        grid (`tuple[int, int]`): H and W; odd ones are rounded up.
        threshold, eps (`float`): tau and epsilon of equations 3 to 8.

    Returns:
        `Tensor`: (B, ceil(H/2)*ceil(W/2), C), row by row.

    Raises:
        ValueError: `x` is no such grid.
    """
    height, width = grid
    if x.ndim != 3 or x.shape[1] != height * width:
        raise ValueError(
            f"`x` has shape {tuple(x.shape)}; a grid of {height} by {width} takes (B, {height * width}, C)."
        )
    position = torch.arange(height * width, device=x.device).view(height, width)
    is_destination = torch.zeros_like(position, dtype=torch.bool)
    is_destination[::2, ::2] = True
    # Both are known from the grid alone; sorting instead of a mask keeps graphs free of shapes that data decides.
    order = (~is_destination).flatten().int().argsort(stable=True)
    num_destinations = -(-height // 2) * -(-width // 2)
    destinations, sources = order[:num_destinations], order[num_destinations:]
    scores = paired_scores(x, sources, destinations, "cosine", None)
    weights = fusion_weights(scores, threshold, eps, adaptive_pruning=True)  # (B, T, S)
    own = 1 / (1 + weights.sum(dim=-1, keepdim=True))  # (B, T, 1)
    with full_precision(x.device):
        shares = (weights * own).to(x.dtype) @ take(x, sources)
    return take(x, destinations) * own.to(x.dtype) + shares

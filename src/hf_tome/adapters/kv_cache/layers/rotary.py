"""Rotary position embeddings: turn keys and queries by any positions, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor, interleaved: bool) -> Tensor:
    """Turn vectors by the angles of their positions, in float32; negative positions turn back.

    Args:
        x: (..., N, D); the first 2 * F channels turn, the rest stays (partial rotary embeddings).
        positions: (..., N).
        frequencies: (F,), radians a position.
        interleaved: whether a pair of channels that turn together are neighbours; else they are half the turned
            channels apart.
    """
    angles = positions[..., None].to(torch.float32) * frequencies.to(x.device, torch.float32)  # (..., N, F)
    cos, sin = angles.cos(), angles.sin()
    x = x.to(torch.float32)
    turned, rest = x.split([2 * frequencies.shape[0], x.shape[-1] - 2 * frequencies.shape[0]], dim=-1)
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    first, second = first * cos - second * sin, second * cos + first * sin
    pair = torch.stack((first, second), dim=-1).flatten(-2) if interleaved else torch.cat((first, second), dim=-1)
    return torch.cat((pair, rest), dim=-1)

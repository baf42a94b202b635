"""Picking tokens by their positions."""

from __future__ import annotations

import torch
from torch import Tensor


def flat_rows(num_tokens: int, *indices: Tensor) -> list[Tensor]:
    """Turn token numbers (B, K), of N tokens an image, into row numbers of the flattened batch, (B * K,)."""
    batch_size = indices[0].shape[0]
    # No short cut in a traced graph: one traced with a single image would give its tokens to all images of a batch.
    if not torch.jit.is_tracing() and batch_size == 1:
        return [index.reshape(-1) for index in indices]
    first = torch.arange(batch_size, device=indices[0].device)[:, None] * num_tokens
    return [(index + first).reshape(-1) for index in indices]


Positions = Tensor | slice
"""Which tokens: (K,), the same in every image, (B, K), each image's own, or a slice, which copies nothing."""


def take(x: Tensor, positions: Positions) -> Tensor:
    """Return the tokens of (B, N, ...) at positions, (B, K, ...)."""
    if isinstance(positions, slice):
        return x[:, positions]
    if positions.ndim == 1:
        return x.index_select(1, positions)
    batch_size, num_tokens, *rest = x.shape
    # One selection from the flattened batch is several times faster than a gather with an expanded index.
    (rows,) = flat_rows(num_tokens, positions)
    return x.reshape(batch_size * num_tokens, *rest).index_select(0, rows).view(*positions.shape, *rest)


def is_traced() -> bool:
    """Return whether a graph is being made, so that nothing may depend on values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def has_cpu_values(x: Tensor) -> bool:
    """Return whether looking at the values of a tensor costs little: a plain one on a CPU, not traced."""
    return x.device.type == "cpu" and type(x) is Tensor and not is_traced()

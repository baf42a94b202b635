"""The mask of an attention whose first keys are merged entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedModelError

BACKENDS = ("eager", "sdpa", "flex_attention")
"""Attention implementations that take a mask of numbers, by which sizes reach them."""


def check_backend(name: str) -> None:
    """Raise where an attention implementation cannot read sizes.

    Raises:
        UnsupportedModelError: it says what to use.
    """
    if name not in BACKENDS:
        raise UnsupportedModelError(
            f"The attention implementation is {name!r}, which takes no mask of numbers, so the sizes of merged "
            f"entries cannot reach it. Use one of {', '.join(map(repr, BACKENDS))}, as in "
            "`model.set_attn_implementation('sdpa')`."
        )


def dense(mask: Any, num_queries: int) -> Tensor | None:
    """Return a mask as a tensor (B, 1, q, K): the blocks of flex attention are written out; `None` stays."""
    if mask is None or isinstance(mask, Tensor):
        return mask
    if isinstance(mask, dict):
        raise UnsupportedModelError("Masks by layer type are made for static caches, in which entries cannot merge.")
    batch_size, length = mask.shape[0], mask.seq_lengths[1]
    device = mask.kv_num_blocks.device
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    queries = torch.arange(num_queries, device=device)[None, None, :, None]
    keys = torch.arange(length, device=device)[None, None, None]
    seen = mask.mask_mod(rows, torch.zeros_like(rows), queries, keys)
    return seen.expand(batch_size, 1, num_queries, length)


def real_columns(mask: Tensor | None) -> Tensor | None:
    """Return the keys (B, K) that the last query sees, which are all but padding; `None` for all."""
    if mask is None:
        return None
    last = mask[:, 0, -1]
    real = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
    return None if bool(real.all()) else real


def with_bias(mask: Tensor | None, bias: Tensor, num_queries: int, num_groups: int, dtype: torch.dtype) -> Tensor:
    """Return the mask, as numbers, of stored entries with a bias and the new tokens behind them.

    Args:
        mask: (B, 1, q, K) of the model, whose last q columns are those of the new tokens; `None`: causal.
        bias: (B, H, N), of the stored entries, all of which new tokens see but where it is minus infinity.
        num_groups: query heads of a KV head.

    Returns:
        (B, Hq, q, N + q).
    """
    lowest = torch.finfo(dtype).min
    if mask is None:
        mask = torch.ones(num_queries, num_queries, dtype=torch.bool, device=bias.device).tril()[None, None]
    new = mask[..., -num_queries:]
    if new.dtype == torch.bool:
        new = torch.zeros_like(new, dtype=dtype).masked_fill(~new, lowest)
    stored = bias.to(dtype).clamp(min=lowest).repeat_interleave(num_groups, dim=1)[:, :, None]  # (B, Hq, 1, N)
    batch_size, num_heads, _, num_stored = stored.shape
    stored = stored.expand(batch_size, num_heads, num_queries, num_stored)
    return torch.cat([stored, new.to(dtype).expand(batch_size, num_heads, num_queries, num_queries)], dim=-1)

"""The mask of an attention whose first keys are merged entries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UnsupportedModelError

MASK_BACKENDS = ("eager", "sdpa", "flex_attention")
"""Attention implementations that take a mask of numbers, by which sizes reach them."""
CHANNEL_BACKENDS = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
"""Those that take none: sizes travel in extra channels (see `channels`)."""


def check_backend(name: str, has_softcap: bool = False) -> None:
    """Raise where an attention implementation cannot read sizes.

    Raises:
        UnsupportedModelError: it says what to use.
    """
    advice = "as in `model.set_attn_implementation('sdpa')`"
    if name in CHANNEL_BACKENDS and has_softcap:
        raise UnsupportedModelError(
            f"The attention implementation is {name!r}, and the model bounds its logits by a tanh, which would bound "
            "the sizes of merged entries as well. Use 'eager', as in `model.set_attn_implementation('eager')`."
        )
    if name not in MASK_BACKENDS + CHANNEL_BACKENDS:
        raise UnsupportedModelError(
            f"The attention implementation is {name!r}, and how the sizes of merged entries could reach it is not "
            f"known. Use one of {', '.join(map(repr, MASK_BACKENDS + CHANNEL_BACKENDS))}, {advice}."
        )


def dense(mask: Any, num_queries: int) -> Tensor | None:
    """Return a mask as a tensor (B, 1, q, K), or (B, K) as flash attention has it; `None` stays.

    The blocks of flex attention are written out.
    """
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
    last = mask if mask.ndim == 2 else mask[:, 0, -1]  # flash attention has one of two dimensions
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
    if num_queries == 1:  # which sees itself, and all entries that are stored
        whole = F.pad(bias.to(dtype).clamp(min=lowest), (0, 1))[:, :, None, None]  # (B, H, 1, 1, N + 1)
        return whole.expand(-1, -1, num_groups, -1, -1).flatten(1, 2)
    if mask is None:
        mask = torch.ones(num_queries, num_queries, dtype=torch.bool, device=bias.device).tril()[None, None]
    new = mask[..., -num_queries:]
    if new.dtype == torch.bool:
        new = torch.zeros_like(new, dtype=dtype).masked_fill(~new, lowest)
    stored = bias.to(dtype).clamp(min=lowest)[:, :, None, None].expand(-1, -1, num_groups, num_queries, -1)
    new = new.to(dtype)[:, :, None].expand(*stored.shape[:-1], num_queries)
    return torch.cat([stored, new], dim=-1).flatten(1, 2)  # (B, H, G, q, N + q) -> (B, Hq, q, N + q)

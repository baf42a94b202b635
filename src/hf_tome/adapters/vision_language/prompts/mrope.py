"""Positions with axes for time, height and width (M-RoPE): a merged token keeps those of the place that it keeps.

They are made from the prompt as it was passed, so text keeps its positions too: nothing closes up behind an image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .prompt import Shortening

GRIDS = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask")
"""What the positions of a prompt are made of, besides its ids."""


def shortened_positions(owner: Any, call: dict[str, Any], shortening: Shortening, for_generate: bool) -> Tensor | None:
    """Return the position ids of a shortened prompt, and store on `owner` the position at which its text continues.

    Args:
        owner: the model that counts positions (`Qwen2_5_VLModel`).
        call: the arguments as they were passed, with ids and grids.
        for_generate: put the positions in the text in front, as generation has them.

    Returns:
        (3, B, L') or (4, B, L') int64, or `None` where the model itself would count tokens one by one.
    """
    given = call.get("position_ids")
    if given is not None:
        if given.ndim == 2:
            return None
        rows = torch.stack([shortening.shorten(row, 0) for row in given])
        return torch.cat([_in_text(shortening)[None], rows[1:]]) if len(rows) == 4 else rows
    grids = {name: call[name] for name in GRIDS if call.get(name) is not None}
    if call.get("input_ids") is None or "mm_token_type_ids" not in grids or "image_grid_thw" not in grids:
        return None
    positions, deltas = owner.get_rope_index(call["input_ids"], **grids)  # (3, B, L), (B, 1)
    # Deltas are counted from the number of tokens, of which there are fewer now.
    owner.rope_deltas = deltas + shortening.dropped.sum(dim=1, keepdim=True)
    rows = torch.stack([shortening.shorten(row, 0) for row in positions])
    return torch.cat([_in_text(shortening)[None], rows]) if for_generate else rows


def continued_positions(owner: Any, in_text: Tensor) -> Tensor:
    """Return the position ids (3, B, q) of new tokens at the positions (B, q) in a text without gaps."""
    deltas = getattr(owner, "rope_deltas", None)
    if deltas is not None:
        in_text = in_text + deltas.repeat_interleave(len(in_text) // len(deltas), dim=0)
    return in_text.expand(3, -1, -1)


def _in_text(shortening: Shortening) -> Tensor:
    """Return the positions (B, L') of tokens that are counted one by one, 0 for padding."""
    real = shortening.shorten(torch.ones_like(shortening.keep, dtype=torch.int64), 0)
    return (real.cumsum(dim=1) - 1).clamp(min=0)

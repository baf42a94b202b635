"""The attention of SAM's kind among merged tokens: within windows with their pads, or over the whole grid."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ....patching.patch import PatchedModule, context_of
from ...encoders.attention import AttentionCall, attention_paid
from ..packed.attention import PackedCall

if TYPE_CHECKING:
    from .family import WindowFamily


@dataclass
class WindowCall(PackedCall):
    """What a block asks of its attention, and what it gets back (see `PackedCall`).

    Attributes:
        rows, columns: (M,) int64, the place of each token in its segment.
        sides: rows and columns of a segment.
        pads: for each batch of segments, (G, P, 2), row and column of its pads: places beyond the grid's edges, whose
            keys and values are those of zeros.
    """

    rows: Tensor | None = None
    columns: Tensor | None = None
    sides: tuple[int, int] = (0, 0)
    pads: tuple[Tensor, ...] = ()


class WindowAttention(PatchedModule):
    """Attention that takes tokens of any places; the model's own where no block asks."""

    def forward(self, hidden_states: Tensor, *args: Any, merge_call: WindowCall | None = None, **kwargs: Any) -> Any:
        """Attend over `hidden_states` (M, C) within the segments of the call."""
        if merge_call is None:
            return super().forward(hidden_states, *args, **kwargs)
        context, call = context_of(self), merge_call
        family: WindowFamily = context.target.plan.family
        num_heads = getattr(self, family.num_heads)
        query, key, value = _project(self, family, hidden_states, num_heads)
        if call.feature is not None:
            call.result = {"q": query, "k": key, "v": value}[call.feature]
        # What a pad's key and value are is what projections make of zeros.
        _, pad_key, pad_value = _project(self, family, hidden_states.new_zeros(1, hidden_states.shape[1]), num_heads)
        tables = kwargs.get("position_embeddings")
        assert call.rows is not None
        assert call.columns is not None
        if tables is not None:
            rotate = getattr(sys.modules[context.detail], str(family.rotary))
            place = call.rows * call.sides[1] + call.columns
            query, key = _turned(rotate, query, key, tables, place)
        segments, outputs, paid = call.segments, [], []
        states = (query, key, value, call.rows, call.columns)
        biases = [None] * len(segments.shapes) if call.bias is None else segments.split(call.bias)
        batches = zip(zip(*(segments.split(part) for part in states)), biases, call.pads)
        dropout = getattr(self, family.dropout, 0.0) if self.training else 0.0
        scale = getattr(self, family.scaling)
        for (q, k, v, row, column), bias, pads in batches:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (G, N, H, d) -> (G, H, N, d)
            num_real = k.shape[2]
            if pads.shape[1]:
                k, v, bias = _with_pads(k, v, bias, pad_key, pad_value, pads.shape[1])
                if tables is not None:
                    padded = (pads[..., 0] * call.sides[1] + pads[..., 1]).flatten()
                    k = _with_turned_pads(rotate, k, num_real, tables, padded)
            mask = None if bias is None else bias[:, None, None].to(q.dtype)  # (G, N + P) -> (G, 1, 1, N + P)
            if family.relative_positions and getattr(self, family.relative_positions):
                at = torch.cat([torch.stack([row, column], dim=-1), pads], dim=1)  # (G, N + P, 2)
                mask = position_bias(self, q, at[:, :num_real], at, call.sides, bias)
            if call.attending is not None:
                inner = AttentionCall(attending=0)
                pairs = None if mask is None else mask[..., :num_real].expand(*q.shape[:3], -1)
                paid.append(attention_paid(q, k[:, :, :num_real], scale, inner, pairs))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
            outputs.append(out.transpose(1, 2))
        if call.attending is not None:
            call.attended = segments.join([part[..., None] for part in paid])[:, 0]
        return getattr(self, family.out)(segments.join(outputs).flatten(1)), None


def _project(module: Any, family: WindowFamily, x: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, (M, H, d) each."""
    if family.qkv is not None:
        query, key, value = getattr(module, family.qkv)(x).view(len(x), 3, num_heads, -1).unbind(1)
        return query, key, value
    query, key, value = (
        getattr(module, name)(x).view(len(x), num_heads, -1) for name in (family.query, family.key, family.value)
    )
    return query, key, value


def _turned(
    rotate: Any, query: Tensor, key: Tensor, tables: tuple[Tensor, Tensor], place: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn queries and keys (M, H, d) by the rows of tables at their places (M,)."""
    cos, sin = (table[0].index_select(0, place) for table in tables)  # (1, L, d) -> (M, d)
    query, key = rotate(query.transpose(0, 1), key.transpose(0, 1), cos=cos, sin=sin)  # (H, M, d)
    return query.transpose(0, 1), key.transpose(0, 1)


def _with_pads(
    key: Tensor, value: Tensor, bias: Tensor | None, pad_key: Tensor, pad_value: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Append `count` pads to keys and values (G, H, N, d), with a bias (G, N) of 0."""
    groups, num_heads, _, head_dim = key.shape
    pads = [part.transpose(0, 1).expand(groups, num_heads, count, head_dim) for part in (pad_key, pad_value)]
    key, value = (torch.cat([part, pad], dim=2) for part, pad in zip((key, value), pads))
    return key, value, None if bias is None else F.pad(bias, (0, count))


def _with_turned_pads(rotate: Any, key: Tensor, num_real: int, tables: tuple[Tensor, Tensor], place: Tensor) -> Tensor:
    """Turn the pads among keys (G, H, N + P, d) by the rows of tables at their places (G * P,)."""
    groups, num_heads, _, head_dim = key.shape
    pads = key[:, :, num_real:].transpose(1, 2).reshape(-1, num_heads, head_dim)  # (G * P, H, d)
    _, pads = _turned(rotate, pads, pads, tables, place)
    return torch.cat([key[:, :, :num_real], pads.view(groups, -1, num_heads, head_dim).transpose(1, 2)], dim=2)


def position_bias(
    module: Any, query: Tensor, at: Tensor, key_at: Tensor, sides: tuple[int, int], bias: Tensor | None
) -> Tensor:
    """Return SAM's bias by relative rows and columns for queries and keys of any places, exactly.

    It is one product: for each query what every row and column of the segment adds, by which row and column a key has.

    Args:
        query: (G, H, N, d).
        at, key_at: (G, N, 2) and (G, M, 2), row and column of each query and each key.
        sides: rows and columns of a segment.
        bias: (G, M), of each key, which is added.

    Returns:
        (G, H, N, M).
    """
    added, chosen = [], []
    for axis, (side, table) in enumerate(zip(sides, (module.rel_pos_h, module.rel_pos_w))):
        table = relative_table(table, side).to(query.dtype)  # (2 * side - 1, d)
        offset = at[..., axis, None] - torch.arange(side, device=at.device) + side - 1  # (G, N, side)
        products = query @ table.T
        added.append(products.gather(-1, offset[:, None].expand(-1, query.shape[1], -1, -1)))
        chosen.append(F.one_hot(key_at[..., axis], side).to(query.dtype))
    if bias is not None:
        added.append(torch.ones_like(query[..., :1]))
        chosen.append(bias[..., None].to(query.dtype))
    return torch.cat(added, dim=-1) @ torch.cat(chosen, dim=-1)[:, None].transpose(-1, -2)


def relative_table(table: Tensor, side: int) -> Tensor:
    """Return a table of relative positions (L, d) for segments of another side, (2 * side - 1, d)."""
    length = 2 * side - 1
    if len(table) == length:
        return table
    return F.interpolate(table.T[None].float(), size=length, mode="linear")[0].T

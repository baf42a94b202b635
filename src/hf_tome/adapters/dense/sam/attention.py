"""The attention of SAM's kind among merged tokens: within windows with their pads, or over the whole grid."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ....merging.indexing import has_cpu_values
from ....patching.patch import PatchedModule, context_of
from ...encoders.attention import AttentionCall, attention_paid
from ..packed.attention import SegmentCall
from ..packed.segments import Segments

if TYPE_CHECKING:
    from .family import WindowFamily

BIAS_PART = 2**21
"""Entries of a bias that a thread of a CPU makes at once: they stay in its cache, where the whole bias does not."""


@dataclass(kw_only=True)
class WindowCall(SegmentCall):
    """What a block asks of its attention, and what it gets back (see `SegmentCall`).

    Attributes:
        layout: the places of the tokens.
    """

    layout: TokenLayout


class TokenLayout:
    """Where the tokens going into a block are in their segments, batch by batch; the same until the next merge.

    Attributes:
        segments: in which tokens attend.
        sides: rows and columns of a segment.
        place: (M,) int64, the place of each token in its segment, row by row.
        pads: for each batch of segments, (G, P), the places of its pads, which are beyond the grid's edges: their keys
            and values are those of zeros.
        biases: for each batch, (G, N + P), what is added to the logits of each key; or `None`.
    """

    def __init__(
        self,
        segments: Segments,
        sides: tuple[int, int],
        rows: Tensor,
        columns: Tensor,
        pads: Sequence[Tensor],
        bias: Tensor | None,
    ):
        self.segments, self.sides = segments, sides
        self.place = rows * sides[1] + columns
        self.pads = [part[..., 0] * sides[1] + part[..., 1] for part in pads]
        of_tokens = [None] * len(self.pads) if bias is None else segments.split(bias)
        self.biases = [
            None if part is None else F.pad(part, (0, beyond.shape[1])) for part, beyond in zip(of_tokens, self.pads)
        ]
        self._positions: list[RelativePositions] = []

    def positions(self) -> list[RelativePositions]:
        """Return the relative positions of each batch."""
        if not self._positions:
            for place, pads, bias in zip(self.segments.split(self.place), self.pads, self.biases):
                keys = torch.cat([place, pads], dim=1)
                self._positions.append(RelativePositions(place, keys, self.sides, bias))
        return self._positions


class RelativePositions:
    """SAM's bias by relative rows and columns for queries and keys of any places, exactly, as one product.

    For each query, what every row and column of the segment adds is multiplied by which row and column a key has.

    Args:
        place, key_place: (G, N) and (G, M), places of queries and keys, row by row.
        sides: rows and columns of a segment.
        bias: (G, M), of each key, which is added.
    """

    def __init__(self, place: Tensor, key_place: Tensor, sides: tuple[int, int], bias: Tensor | None = None):
        self.sides, self.has_bias = sides, bias is not None
        at, key_at = ((places // sides[1], places % sides[1]) for places in (place, key_place))
        # (G, 1, N, side): the offset of each query from each row, and from each column
        self._offsets = [
            (query[..., None] - torch.arange(side, device=query.device) + side - 1)[:, None]
            for query, side in zip(at, sides)
        ]
        chosen = [F.one_hot(key, side) for key, side in zip(key_at, sides)]
        chosen += [] if bias is None else [bias[..., None]]
        # (G, 1, rows + columns (+ 1), M)
        self._chosen = torch.cat([part.to(torch.float32) for part in chosen], dim=-1)[:, None].transpose(-1, -2)

    def bias(self, module: Any, query: Tensor) -> Tensor:
        """Return the bias (G, H, N, M) of queries (G, H, N, d) by the tables of an attention."""
        return self.by_key(self.by_side(module, query))

    def by_side(self, module: Any, query: Tensor) -> Tensor:
        """Return what rows and columns of the segment add to queries (G, H, N, d), (G, H, N, rows + columns)."""
        added = []
        for side, offset, table in zip(self.sides, self._offsets, (module.rel_pos_h, module.rel_pos_w)):
            products = query @ relative_table(table, side).to(query.dtype).T  # (G, H, N, 2 * side - 1)
            added.append(products.gather(-1, offset.expand(-1, query.shape[1], -1, -1)))
        if self.has_bias:
            added.append(torch.ones_like(query[..., :1]))
        return torch.cat(added, dim=-1)

    def by_key(self, added: Tensor) -> Tensor:
        """Return the bias (G, H, N, M) from what `by_side` returns for queries, or some of them."""
        return added @ self._chosen.to(added.dtype)


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
        call.take_feature(query, key, value)
        value = call.scale_value(value)
        # What a pad's key and value are is what projections make of zeros.
        _, pad_key, pad_value = _project(self, family, hidden_states.new_zeros(1, hidden_states.shape[1]), num_heads)
        layout = call.layout
        tables: Any = kwargs.get("position_embeddings")
        rotate = None if tables is None else getattr(sys.modules[context.detail], str(family.rotary))
        if rotate is not None:
            query, key = _turned(rotate, query, key, tables, layout.place)
        is_relative = family.relative_positions is not None and getattr(self, family.relative_positions)
        positions = layout.positions() if is_relative else [None] * len(layout.pads)
        segments, outputs, paid = layout.segments, [], []
        batches = zip(
            zip(*(segments.split(part) for part in (query, key, value))), layout.pads, layout.biases, positions
        )
        dropout = getattr(self, family.dropout, 0.0) if self.training else 0.0
        scale = getattr(self, family.scaling)
        for states, pads, bias, relative in batches:
            q, k, v = (part.transpose(1, 2) for part in states)  # (G, N, H, d) -> (G, H, N, d)
            num_real = k.shape[2]
            if pads.shape[1]:
                k, v = _with_pads(k, v, pad_key, pad_value, pads.shape[1])
                if rotate is not None:
                    k = _with_turned_pads(rotate, k, num_real, tables, pads.flatten())
            mask = None if bias is None else bias[:, None, None].to(q.dtype)  # (G, N + P) -> (G, 1, 1, N + P)
            if call.attending is not None:
                pairs = mask if relative is None else relative.bias(self, q)
                pairs = None if pairs is None else pairs[..., :num_real].expand(*q.shape[:3], -1)
                inner = AttentionCall(attending=call.attending)  # (0: the mean of all queries)
                paid.append(attention_paid(q, k[:, :, :num_real], scale, inner, pairs))
            if relative is None:
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
            else:
                out = _attend_by_places(self, q, k, v, relative, dropout, scale)
            outputs.append(out.transpose(1, 2))
        if call.attending is not None:
            call.attended = segments.join([part[..., None] for part in paid])[:, 0]
        return getattr(self, family.out)(segments.join(outputs).flatten(1)), None


def _attend_by_places(
    module: Any, query: Tensor, key: Tensor, value: Tensor, relative: RelativePositions, dropout: float, scale: float
) -> Tensor:
    """Attend from queries (G, H, N, d) to keys (G, H, M, d) with a bias by places, which is made in parts."""
    added = relative.by_side(module, query)
    groups, num_heads, num_queries, _ = query.shape
    heads, queries = num_heads, num_queries
    if has_cpu_values(query):
        rows = max(BIAS_PART * torch.get_num_threads() // (groups * key.shape[2]), 1)  # of the bias of each group
        heads = min(max(rows // num_queries, 1), num_heads)
        queries = num_queries if heads > 1 else min(rows, num_queries)

    def attend(head: int, start: int) -> Tensor:
        of_heads, part = slice(head, head + heads), slice(start, start + queries)
        return F.scaled_dot_product_attention(
            query[:, of_heads, part],
            key[:, of_heads],
            value[:, of_heads],
            attn_mask=relative.by_key(added[:, of_heads, part]),
            dropout_p=dropout,
            scale=scale,
        )

    parts = [
        torch.cat([attend(head, start) for start in range(0, num_queries, queries)], dim=2)
        for head in range(0, num_heads, heads)
    ]
    return torch.cat(parts, dim=1)


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


def _with_pads(key: Tensor, value: Tensor, pad_key: Tensor, pad_value: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Append `count` pads to keys and values (G, H, N, d)."""
    groups, num_heads, _, head_dim = key.shape
    pads = [part.transpose(0, 1).expand(groups, num_heads, count, head_dim) for part in (pad_key, pad_value)]
    key, value = (torch.cat([part, pad], dim=2) for part, pad in zip((key, value), pads))
    return key, value


def _with_turned_pads(rotate: Any, key: Tensor, num_real: int, tables: tuple[Tensor, Tensor], place: Tensor) -> Tensor:
    """Turn the pads among keys (G, H, N + P, d) by the rows of tables at their places (G * P,)."""
    groups, num_heads, _, head_dim = key.shape
    pads = key[:, :, num_real:].transpose(1, 2).reshape(-1, num_heads, head_dim)  # (G * P, H, d)
    _, pads = _turned(rotate, pads, pads, tables, place)
    return torch.cat([key[:, :, :num_real], pads.view(groups, -1, num_heads, head_dim).transpose(1, 2)], dim=2)


def relative_table(table: Tensor, side: int) -> Tensor:
    """Return a table of relative positions (L, d) for segments of another side, (2 * side - 1, d)."""
    length = 2 * side - 1
    if len(table) == length:
        return table
    return F.interpolate(table.T[None].float(), size=length, mode="linear")[0].T

"""A layer of a cache whose entries merge: it stores merged entries, and counts the tokens that it has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ..rule import TAIL_LIMIT, Rule
from .attended import NUM_KEPT_QUERIES, NUM_QUERIES, FutureQueries, Turning
from .entries import Entries, join
from .growing import GrowingStorage
from .merge_span import merge_span


@dataclass(frozen=True)
class Call:
    """What a layer has to know of a call besides its keys and values.

    Attributes:
        positions: (B, q) of the new tokens.
        real: (B, stored + q), False where an entry or a new token is padding; `None` where none is.
        turning: how keys and queries are turned.
        scaling, softcap: as attention takes them.
        queries: makes queries before RoPE, (B, Hq, n, D), of the new tokens at places (B, n).
    """

    positions: Tensor
    real: Tensor | None
    turning: Turning
    scaling: float
    softcap: float | None
    queries: Callable[[Tensor], Tensor]


class MergingLayer(DynamicLayer):
    """Stores keys and values as `DynamicLayer` does, and merges them after the prompt and where the tail grows long.

    `update` returns what it held and the new entries, and merges what it stores. Padding comes first in each row.

    Attributes:
        sizes, positions: (B, H, N); see `Entries`.
        padding: (B,), how many of the stored entries are padding in front.
        lost: (B,), how many tokens of padding the row began with.
        seen: tokens seen, padding included.
        settled: stored entries that do not merge again.
        has_merged: whether entries have ever merged.
        has_padding: whether some stored entry is padding.
        sampled: (B, Hq, Q, D), queries before RoPE, where sizes are fitted to them.
    """

    is_sliding = False
    # What lies behind the merged entries can be taken back, which is all that assisted decoding asks for; see `crop`.
    is_croppable = True

    def __init__(self, rule: Rule, **kwargs: Any):
        super().__init__()
        self.rule = rule
        self._forget()

    def _forget(self) -> None:
        self.sizes: Tensor | None = None
        self.positions: Tensor | None = None
        self.padding: Tensor | None = None
        self.lost: Tensor | None = None
        self.sampled: Tensor | None = None
        self._logarithm: Tensor | None = None
        self._storage = GrowingStorage()
        self.seen = self.settled = self.num_sampled = 0
        self.has_merged = self.has_padding = False
        self._is_new = True
        self._call: Call | None = None

    @classmethod
    def holding(cls, layer: DynamicLayer, rule: Rule) -> MergingLayer:
        """Return a layer that holds what a plain one does, all of which may merge in the next call."""
        merging = cls(rule)
        keys, values = layer.keys, layer.values
        if not layer.is_initialized or keys is None or values is None or keys.numel() == 0:
            return merging
        merging.lazy_initialization(keys, values)
        merging.keys, merging.values, merging.seen = keys, values, keys.shape[2]
        merging.sizes = torch.ones(keys.shape[:3], dtype=torch.float32, device=keys.device)
        merging.positions = torch.arange(keys.shape[2], dtype=torch.int32, device=keys.device).expand(keys.shape[:3])
        return merging

    @property
    def num_stored(self) -> int:
        """Entries that are stored."""
        return 0 if self.sizes is None else self.sizes.shape[2]

    def expect(self, call: Call) -> None:
        """Take what the next `update` has to know."""
        self._call = call

    def bias(self, is_masked: bool = False) -> Tensor | None:
        """Return what the logits of the stored entries are biased by, (B, H, N), or `None` where it is zero.

        Args:
            is_masked: whether a mask leaves padding out already, in which case entries that never merged need none.
        """
        if self.sizes is None or not (self.has_merged or (self.has_padding and not is_masked)):
            return None
        if self.has_merged and self.rule.uses_sizes:
            return self._log_sizes()
        return self.zeros().masked_fill(self.sizes == 0, -torch.inf) if self.has_padding else None

    def _log_sizes(self) -> Tensor:
        """Return the logarithm of the sizes; entries behind those that it was taken of before have size 1."""
        assert self.sizes is not None
        logarithm = self.sizes.log() if self._logarithm is None else self._logarithm
        self._logarithm = torch.nn.functional.pad(logarithm, (0, self.num_stored - logarithm.shape[2]))
        return self._logarithm

    def zeros(self) -> Tensor:
        """Return a bias of nothing, (B, H, N)."""
        assert self.sizes is not None
        return torch.zeros_like(self.sizes)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new entries, return all as they were before they merge, and merge.

        Raises:
            RuntimeError: the attention that calls is not patched, so that it would not read the sizes.
        """
        call, self._call = self._call, None
        if call is None:
            raise RuntimeError(
                "This cache has been filled by a model with merging, whose attention alone reads the sizes of its "
                "entries. Call `hf_tome.apply(model, config)` again, or begin with a new cache."
            )
        is_first, self._is_new = self._is_new, False
        if self.has_merged:
            self._grow(key_states, value_states, call)
        else:
            self._append(key_states, call)
            super().update(key_states, value_states)
        keys, values = self.keys, self.values
        assert keys is not None
        assert values is not None
        if self.rule.reads_queries:
            self._sample(call, key_states.shape[2])
        self.seen += key_states.shape[2]
        # What is merged in this call must not be what it returns: attention reads the entries as they were.
        if self.rule.merges and (is_first or self.num_stored - self.settled > TAIL_LIMIT + self.rule.protect[1]):
            self.merge(call)
        return keys, values

    def _grow(self, key_states: Tensor, value_states: Tensor, call: Call) -> None:
        """Store new entries behind merged ones."""
        new = Entries(key_states, value_states, *_sizes_and_positions(key_states, call))
        self.keys, self.values, self.sizes, self.positions = self._storage.append(self._entries(), new)

    def _entries(self) -> Entries:
        return Entries(self.keys, self.values, self.sizes, self.positions)  # type: ignore[arg-type]

    def _append(self, key_states: Tensor, call: Call) -> None:
        """Note the sizes, positions and padding of new entries, where none has merged."""
        batch_size, device = key_states.shape[0], key_states.device
        sizes, positions = _sizes_and_positions(key_states, call)
        self.sizes = sizes if self.sizes is None else torch.cat([self.sizes, sizes], dim=2)
        self.positions = positions if self.positions is None else torch.cat([self.positions, positions], dim=2)
        if self.padding is None:
            self.padding = torch.zeros(batch_size, dtype=torch.int64, device=device)
            if call.real is not None:
                self.padding = leading_padding(call.real).to(device)
                self.sizes = self.sizes * call.real[:, None].to(self.sizes)
                self.has_padding = True
            self.lost = self.padding

    def _sample(self, call: Call, num_new: int) -> None:
        """Keep queries of the prompt, spread over it; where it is short, the latest ones as they come."""
        padding = self.padding
        if self.sampled is None or num_new >= NUM_QUERIES:
            assert padding is not None
            begin = (padding - (self.num_stored - num_new)).clamp(min=0)[:, None]  # (B, 1), in the new tokens
            places = torch.arange(NUM_QUERIES, device=begin.device) * (num_new - 1 - begin) // (NUM_QUERIES - 1)
            self.sampled = call.queries(begin + places)
            self.num_sampled = num_new
        elif self.num_sampled < NUM_QUERIES:
            places = torch.arange(num_new, device=self.sampled.device).expand(self.sampled.shape[0], -1)
            self.sampled = torch.cat([self.sampled, call.queries(places)], dim=2)[:, :, -NUM_QUERIES:]
            self.num_sampled += num_new

    def merge(self, call: Call) -> None:
        """Merge what is not settled, each row as if it were alone."""
        entries = self._entries()
        assert self.padding is not None
        assert self.lost is not None
        starts = list(zip(self.padding.tolist(), self.lost.tolist()))
        parts: dict[int, Entries] = {}
        for padding, lost in sorted(set(starts)):
            rows = [row for row, start in enumerate(starts) if start == (padding, lost)]
            merged = self._merge_rows(entries, rows, padding, lost, call)
            parts.update((row, merged.row(at)) for at, row in enumerate(rows))
        longest = max(part.length for part in parts.values())
        if longest < self.num_stored:
            self.padding = self.padding.new_tensor([longest - parts[row].length for row in range(len(parts))])
            merged = join([parts[row].pad_first(longest) for row in range(len(parts))], dim=0)
            self.keys, self.values, self.sizes, self.positions = merged
            self.has_merged = True
            self._logarithm = None
            if self.sampled is not None and self.sampled.shape[2] > NUM_KEPT_QUERIES:
                self.sampled = self.sampled[:, :, :: NUM_QUERIES // NUM_KEPT_QUERIES].contiguous()
            self.has_padding = bool((self.sizes == 0).any())
            self.settled = max(longest - self.rule.protect[1], 0)

    def _merge_rows(self, entries: Entries, rows: list[int], padding: int, lost: int, call: Call) -> Entries:
        """Merge rows that begin with as much padding, and return them without it."""
        index = torch.tensor(rows, device=entries.keys.device)
        part = entries.each(lambda x: x[:, :, padding:])
        if len(rows) < entries.keys.shape[0]:
            part = part.each(lambda x: x.index_select(0, index))
        first, last = self.rule.protect
        begin, end = max(self.settled - padding, first), part.length - last
        target = self.rule.target(self.seen - lost) - (part.length - (end - begin)) if self.rule.keep_ratio else 0
        if end - begin < 2 or end - begin <= target:
            return part
        future = None
        if self.rule.reads_queries and self.sampled is not None:
            queries = self.sampled.to(part.keys.device).index_select(0, index)
            final = part.positions[:, 0, -1]
            future = FutureQueries.at(queries, part.keys.shape[1], final, call.turning, call.scaling, call.softcap)
        return merge_span(part, begin, end, max(target, 1), self.rule, call.turning, future)

    def get_seq_length(self) -> int:
        """Return the tokens seen, by which models count positions."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many entries attention will be given, and the tokens seen that are not among them."""
        return self.num_stored + query_length, self.seen - self.num_stored

    def num_bytes(self) -> int:
        """Return the bytes of all that is stored."""
        others = sum(x.numel() * x.element_size() for x in (self.sampled, self._logarithm) if x is not None)
        return others + (0 if self.sizes is None else self._storage.num_bytes(self._entries()))

    def crop(self, tokens_to_remove: int) -> None:
        """Take the latest tokens back.

        Raises:
            RuntimeError: some of them have merged.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"`crop` takes the negative number of tokens to remove, not {tokens_to_remove}.")
        count = -tokens_to_remove
        if not count or self.sizes is None:
            return
        if count > self.num_stored - self.settled:
            raise RuntimeError(
                f"{count} tokens are to be taken back, but all but the last {self.num_stored - self.settled} have "
                f"merged. With assisted decoding let `MergeConfig(protect=(first, last))` have a `last` of at least "
                f"the number of candidate tokens; it is {self.rule.protect[1]}."
            )
        super().crop(tokens_to_remove)
        self.sizes, self.positions = self.sizes[..., :-count], self.positions[..., :-count]  # type: ignore[index]
        self.seen -= count
        if self._logarithm is not None:
            self._logarithm = self._logarithm[..., : self.num_stored]

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._forget()

    def offload(self) -> None:
        """Move what is stored to the CPU."""
        super().offload()
        self._rest(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move what is stored back to the layer's device."""
        super().prefetch()
        if self.is_initialized:
            self._rest(lambda x: x.to(self.device, non_blocking=True))

    def reorder_cache(self, beam_idx: Tensor) -> None:  # type: ignore[override]
        """Put rows in the order of beams."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._rest(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        super().batch_repeat_interleave(repeats)
        self._rest(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self._rest(lambda x: x[indices.to(x.device) if isinstance(indices, Tensor) else indices])

    def _rest(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change all tensors besides keys and values."""
        self._logarithm, self._storage = None, GrowingStorage()
        for name in ("sizes", "positions", "padding", "lost", "sampled"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, change(value))


def _sizes_and_positions(key_states: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Return the sizes and the positions, each (B, H, q), of the new entries of a call."""
    shape, device = key_states.shape[:3], key_states.device
    positions = call.positions.to(device, torch.int32)[:, None].expand(shape)  # (1 or B, q) -> (B, H, q)
    return torch.ones(shape, device=device), positions


def leading_padding(real: Tensor) -> Tensor:
    """Return how many columns of (B, N) are padding in front, (B,).

    Raises:
        ValueError: there is padding behind real tokens.
    """
    padding = (~real).sum(dim=1)
    if bool((real.int().diff(dim=1) < 0).any()) or bool((padding == real.shape[1]).any()):
        raise ValueError(
            "There is padding behind real tokens, or a row of padding alone; entries of a cache merge where padding "
            "comes first. Set `tokenizer.padding_side = 'left'`, as generation takes it anyway."
        )
    return padding

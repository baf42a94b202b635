"""Segments of a packed sequence: those of one length make a batch, in which they attend and merge at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ....merging import Merge
from ....merging.base import HardMerge
from ...encoders.matching import merge_with_coherence


class Segments:
    """How a packed sequence (S, ...) falls into segments, and those of one length into batches (G, N, ...).

    Attributes:
        lengths: of the segments, in order; none is empty.
        shapes: the number of segments and the length of each batch.
        requested: for each batch, how many tokens of each segment are to merge, or another number that they share.
        members: for each batch, which segments these are.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device, requested: Sequence[int] | None = None):
        self.lengths = tuple(lengths)
        members: dict[tuple[int, int], list[int]] = {}
        for index, key in enumerate(zip(self.lengths, requested or [0] * len(self.lengths))):
            members.setdefault(key, []).append(index)
        self.shapes = [(len(indices), length) for (length, _), indices in members.items()]
        self.requested = [r for _, r in members]
        self.members = list(members.values())
        order = [index for indices in members.values() for index in indices]
        self._rows: Tensor | None = None  # (S,), the rows of the sequence batch by batch; `None` where they are so
        self._back: Tensor | None = None
        self._cumulative: Tensor | None = None
        if order != sorted(order):
            starts = [0, *accumulate(self.lengths)]
            rows = [torch.arange(starts[index], starts[index + 1]) for index in order]
            self._rows = torch.cat(rows).to(device)
            self._back = self._rows.argsort()

    @property
    def num_pairs(self) -> int:
        """The pairs of tokens in the attention within segments."""
        return sum(length**2 for length in self.lengths)

    def split(self, x: Tensor) -> list[Tensor]:
        """Take (S, ...) to (G, N, ...) for each batch."""
        x = x if self._rows is None else x.index_select(0, self._rows)
        parts = x.split([count * length for count, length in self.shapes])
        return [part.view(*shape, *x.shape[1:]) for part, shape in zip(parts, self.shapes)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Take (G, N, ...) for each batch to (S, ...)."""
        x = parts[0].flatten(0, 1) if len(parts) == 1 else torch.cat([part.flatten(0, 1) for part in parts])
        return x if self._back is None else x.index_select(0, self._back)

    def cumulative(self, device: torch.device) -> Tensor:
        """Return the cumulative lengths, as flash attention takes them."""
        if self._cumulative is None:
            self._cumulative = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
        self._cumulative = self._cumulative.to(device)
        return self._cumulative


def shared_out(total: int, lengths: Sequence[int]) -> list[int]:
    """Share a number of tokens out among segments, in proportion to their lengths."""
    whole = max(sum(lengths), 1)
    ends = [(2 * total * end + whole) // (2 * whole) for end in accumulate(lengths, initial=0)]  # rounded
    return [end - start for start, end in pairwise(ends)]


class PackedMerge:
    """The merges of all segments of a packed sequence, S -> M tokens, which stay in the order of their places.

    Args:
        segments: of the sequence that goes in.
        merges: one for each batch of segments.

    Attributes:
        is_hard: whether every token goes to one other.
        lengths: how many tokens each segment has left, once they have merged.
    """

    def __init__(self, segments: Segments, merges: Sequence[Merge]):
        self.segments, self.merges = segments, list(merges)
        self.is_hard = all(isinstance(merge, HardMerge) for merge in self.merges)
        self._shapes = [(count, merge.num_output) for (count, _), merge in zip(segments.shapes, self.merges)]
        self._num_rows = sum(count * length for count, length in self._shapes)  # with padding, batch by batch
        self.lengths: list[int] = []
        self._rows: Tensor | None = None  # (M,), of these the ones that are tokens, in order

    def merge(
        self, x: Tensor, size: Tensor | None, place: Tensor, coherence: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Merge tokens (S, C) of sizes (S, 1) and coherence (S,) at places (S,), to M of each.

        Sizes stay `None` where no merge has any (the slice oracle), coherence where none keeps the norm.
        """
        merged, out_size, out_coherence = self._merge(self.merges, x, size, coherence)
        places = [part.gather(1, merge.representative) for merge, part in zip(self.merges, self.segments.split(place))]
        place = torch.cat([part.flatten() for part in places])
        if out_size is not None and any(merge.may_pad(False) for merge in self.merges):
            is_padding = out_size[:, 0] == 0
            of_segment = torch.cat([part.view(*shape).sum(dim=1) for part, shape in self._by_batch(~is_padding)])
            self._count(of_segment.tolist())
            order = place.masked_fill(is_padding, torch.iinfo(place.dtype).max).argsort()
            self._rows = order[: sum(self.lengths)]
        else:
            self._count([length for count, length in self._shapes for _ in range(count)])
            self._rows = place.argsort()
        kept = self._rows
        size, coherence = (None if part is None else part.index_select(0, kept) for part in (out_size, out_coherence))
        return merged.index_select(0, kept), size, place.index_select(0, kept), coherence

    def merge_again(self, x: Tensor, size: Tensor | None) -> Tensor:
        """Merge other values (S, C) of the tokens that have merged, of sizes (S, 1), to (M, C)."""
        assert self._rows is not None
        merges = [merge.to(x.device) for merge in self.merges]
        return self._merge(merges, x, size, None)[0].index_select(0, self._rows.to(x.device))

    def _merge(
        self, merges: Sequence[Merge], x: Tensor, size: Tensor | None, coherence: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return what comes out of all merges, batch by batch and with padding: R tokens for M."""
        none = [None] * len(merges)
        sizes, coherences = (none if part is None else self.segments.split(part) for part in (size, coherence))
        merged = [merge_with_coherence(*parts) for parts in zip(merges, self.segments.split(x), sizes, coherences)]
        tokens, out_sizes, out_coherences = zip(*merged)
        out_size = None if out_sizes[0] is None else torch.cat([part.flatten(0, 1) for part in out_sizes])
        out_coherence = None
        if any(part is not None for part in out_coherences):
            # A batch in which nothing merges has none, which is 1.
            ones = (part.new_ones(part.shape[:2]) for part in out_sizes)
            filled = [one if part is None else part for part, one in zip(out_coherences, ones)]
            out_coherence = torch.cat([part.flatten() for part in filled])
        # (G, M_i, C) each -> (R, C)
        return torch.cat([part.flatten(0, 1) for part in tokens]), out_size, out_coherence

    def _by_batch(self, rows: Tensor) -> list[tuple[Tensor, tuple[int, int]]]:
        """Return the rows (R, ...) of each batch of segments, with the number of its segments and their length."""
        return list(zip(rows.split([count * length for count, length in self._shapes]), self._shapes))

    def _count(self, by_batch: Sequence[int]) -> None:
        """Keep how many tokens each segment has left, given those of the segments batch by batch."""
        members = [index for indices in self.segments.members for index in indices]
        self.lengths = [count for _, count in sorted(zip(members, by_batch))]

    def unmerge(self, x: Tensor) -> Tensor:
        """Give every token its merged token back, (M, C) -> (S, C)."""
        assert self._rows is not None
        rows = x.new_zeros((self._num_rows, x.shape[1])).index_copy(0, self._rows.to(x.device), x)
        unmerged = [
            merge.to(x.device).unmerge(part.view(*shape, -1))
            for merge, (part, shape) in zip(self.merges, self._by_batch(rows))
        ]
        return self.segments.join(unmerged)

    @property
    def source(self) -> Tensor:
        """Where each token went, (S,) int64."""
        assert self._rows is not None
        starts = [0, *accumulate(count * length for count, length in self._shapes)]
        parts = []
        for merge, start, (count, length) in zip(self.merges, starts, self._shapes):
            first = start + torch.arange(count, device=self._rows.device)[:, None] * length
            parts.append(merge.source + first)
        row = torch.arange(len(self._rows), device=self._rows.device)
        rank = self._rows.new_zeros(self._num_rows).index_copy(0, self._rows, row)
        return rank.index_select(0, self.segments.join(parts))

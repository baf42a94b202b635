"""What the blocks of a packed tower carry on to each other in a forward pass: sizes, places, where tokens went."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ....patching.recorder import PassSummary
from .segments import PackedMerge, Segments, shared_out

if TYPE_CHECKING:
    from ....config import MergeConfig


class PackedSummary(PassSummary):
    """The summary of a pass, and for each block what `gflops` needs besides.

    Attributes:
        unmerged_pairs: pairs of tokens an image that attention would have had without merging.
        matching: multiply-adds an image that comparing tokens took.
        projected: tokens an image that its projections would have taken without merging, pads among them.
        read_before: before which blocks tokens were read, in turn (see `PackedState`).
    """

    def __init__(
        self,
        *args: Any,
        unmerged_pairs: list[float],
        matching: list[float],
        projected: list[float],
        read_before: list[int],
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.read_before = read_before
        self.unmerged_pairs, self.matching, self.projected = unmerged_pairs, matching, projected


class PackedState:
    """One forward pass through one packed tower.

    Block i reads entry i of each list and writes entry i + 1, so that a block that is run again by gradient
    checkpointing finds what it found the first time. Where whole groups of tokens merge, sizes, places and lengths are
    those of groups, which are `group_size` tokens in a row.

    Attributes:
        image_bounds: (K + 1,), the cumulative lengths of images, or frames, as they were at first.
        merge_bounds: (W + 1,), those of the segments in which block i merges tokens, the finest that a block has
            attended in so far: images, or windows.
        size: (S_i, 1) going into block i; `None` while nothing has merged.
        coherence: (S_i,), how coherent the members of each token are (`HardMerge.merge_keeping_norm`), or `None`.
        place: (S_i,) int64, ascending: the input position that each token keeps; `None` while nothing has merged.
        source: (S_0,) int64, the token that holds each input token going into block i, while all merges are hard.
        match: the merge that block i did.
        merged: whether a merge has happened before block i.
        lengths: how many tokens of each image, or frame, go into block i.
        pairs, unmerged_pairs: pairs of tokens in the attention of block i, over all segments, now and unmerged.
        matching: multiply-adds that comparing the tokens of block i took.
        projected: how many tokens block i's projections would take without merging, those of pads among them.
        next_block: the block whose turn it is.
        read_before: before which blocks a module read tokens as they were, in turn.
        order: (S_0,) int64, which of the tower's outputs each place is; `None` where they come in the order of places.
    """

    def __init__(self, num_layers: int, image_bounds: Tensor | None = None, group_size: int = 1):
        self.num_layers, self.image_bounds, self.group_size = num_layers, image_bounds, group_size
        self.merge_bounds: list[Tensor | None] = [None] * (num_layers + 1)
        self.size: list[Tensor | None] = [None] * (num_layers + 1)
        self.coherence: list[Tensor | None] = [None] * (num_layers + 1)
        self.place: list[Tensor | None] = [None] * (num_layers + 1)
        self.source: list[Tensor | None] = [None] * (num_layers + 1)
        self.match: list[PackedMerge | None] = [None] * num_layers
        self.merged: list[bool] = [False] * (num_layers + 1)
        self.lengths: list[tuple[int, ...]] = [()] * (num_layers + 1)
        self.pairs: list[int] = [0] * (num_layers + 1)
        self.unmerged_pairs: list[int] = [0] * num_layers
        self.matching: list[float] = [0] * num_layers
        self.projected: list[int] = [0] * num_layers
        self.next_block = 0
        self.read_before: list[int] = []
        self.order: Tensor | None = None
        self.device = torch.device("cpu")
        self._read_bounds: list[tuple[Tensor, tuple[int, ...]]] = []
        # By block: how many tokens are left before input positions; `None` while nothing has merged.
        self._left_before: list[dict[int, int] | None] = [None] * (num_layers + 1)
        self._segments_of: dict[tuple[int, ...], Segments] = {}

    def enter(self, hidden_states: Tensor, bounds: Tensor) -> None:
        """Begin with tokens (S, C) of images of cumulative lengths `bounds`, if none are set."""
        self.image_bounds = bounds if self.image_bounds is None else self.image_bounds
        self.device = hidden_states.device
        self.lengths[0] = self._lengths(0, self.image_bounds)

    @torch.compiler.disable  # lengths are data, which torch 2.8 cannot branch on in a graph
    def attention_segments(self, index: int, bounds: Tensor) -> Segments:
        """Return the segments of the tokens going into block `index`, by the cumulative lengths it was called with."""
        if self.image_bounds is not None and len(bounds) == len(self.image_bounds):
            bounds = self.image_bounds  # nothing is finer than images but windows inside them
        before = self.merge_bounds[index - 1] if index else None
        self.merge_bounds[index] = bounds if before is None or len(before) < len(bounds) else before
        lengths = tuple(length * self.group_size for length in self._lengths(index, bounds) if length)
        segments = self._segments_of.get(lengths)
        if segments is None:
            segments = self._segments_of[lengths] = Segments(lengths, self.device)
        self.pairs[index] = segments.num_pairs
        unmerged = (end - start for start, end in pairwise(self._read(bounds)))
        self.unmerged_pairs[index] = sum((length * self.group_size) ** 2 for length in unmerged)
        return segments

    @torch.compiler.disable
    def merge_segments(self, index: int, config: MergeConfig, scheduled: int, num_prefix_tokens: int) -> Segments:
        """Return the segments in which block `index` merges, with the number of tokens that are to merge in each.

        A ratio is one of each segment; an `r`, which counts the tokens of an image, is shared out among its segments.
        """
        bounds = self.merge_bounds[index]
        assert bounds is not None
        assert self.image_bounds is not None
        lengths = self._lengths(index, bounds)
        if config.ratio is not None or len(bounds) == len(self.image_bounds):
            counts = [config.tokens_to_merge(scheduled, length - num_prefix_tokens) for length in lengths]
        else:
            starts, image_starts = self._read(bounds), self._read(self.image_bounds)
            of_image: list[list[int]] = [[] for _ in self.lengths[index]]
            for start, length in zip(starts, lengths):
                of_image[bisect_right(image_starts, start) - 1].append(length)
            counts = []
            for image, inside in zip(self.lengths[index], of_image):
                counts += shared_out(config.tokens_to_merge(scheduled, image - num_prefix_tokens), inside)
        kept = [(length, count) for length, count in zip(lengths, counts) if length]
        return Segments([length for length, _ in kept], self.device, [count for _, count in kept])

    def _read(self, bounds: Tensor) -> tuple[int, ...]:
        """Return cumulative lengths as integers; each tensor is read from its device once in a pass."""
        for tensor, numbers in self._read_bounds:
            if tensor is bounds:
                return numbers
        numbers = tuple(bound // self.group_size for bound in bounds.tolist())
        self._read_bounds.append((bounds, numbers))
        return numbers

    def _lengths(self, index: int, bounds: Tensor) -> tuple[int, ...]:
        """Return how many tokens of those going into block `index` are left in each segment."""
        numbers, left = self._read(bounds), self._left_before[index]
        if left is not None:
            if not left.keys() >= set(numbers):  # finer segments than any that tokens have merged in
                place = self.place[index]
                assert place is not None
                counts = torch.searchsorted(place, place.new_tensor(numbers)).tolist()
                left = self._left_before[index] = {**left, **dict(zip(numbers, counts))}
            numbers = tuple(left[number] for number in numbers)
        return tuple(end - start for start, end in pairwise(numbers))

    @torch.compiler.disable
    def _count(self, index: int, match: PackedMerge) -> None:
        """Follow how many tokens are left of each segment and image behind the merge of block `index`."""
        bounds, kept = self.merge_bounds[index], iter(match.lengths)
        assert bounds is not None
        assert self.image_bounds is not None
        lengths = [next(kept) if length else 0 for length in self._lengths(index, bounds)]
        self._left_before[index + 1] = dict(zip(self._read(bounds), accumulate(lengths, initial=0)))
        self.lengths[index + 1] = self._lengths(index + 1, self.image_bounds)

    def pass_on(self, index: int) -> None:
        """Write down that block `index` merges nothing."""
        for entries in (self.size, self.coherence, self.place, self.source):
            entries[index + 1] = entries[index]
        self.merged[index + 1], self.lengths[index + 1] = self.merged[index], self.lengths[index]
        self._left_before[index + 1] = self._left_before[index]

    def leave(
        self, index: int, size: Tensor | None, place: Tensor, coherence: Tensor | None, match: PackedMerge
    ) -> None:
        """Write down what block `index` hands on, and the merge it did."""
        self.size[index + 1], self.place[index + 1], self.coherence[index + 1] = size, place, coherence
        self.match[index] = match
        source = self.source[index]
        if match.is_hard and (source is not None or not self.merged[index]):
            step = match.source
            self.source[index + 1] = step if source is None else step.index_select(0, source)
        self.merged[index + 1] = True
        self._count(index, match)

    def rows(self, x: Tensor) -> Tensor:
        """Return tokens (S, C) as what merges, (S, C), or their groups in one row each, (S / g, g * C)."""
        return x if self.group_size == 1 else x.reshape(len(x) // self.group_size, -1)

    def tokens(self, rows: Tensor) -> Tensor:
        """Return what `rows` was given, (S, C)."""
        return rows if self.group_size == 1 else rows.reshape(len(rows) * self.group_size, -1)

    def token_places(self, index: int) -> Tensor | None:
        """Return the input position of each token going into block `index`, (S,); `None` while nothing has merged."""
        place = self.place[index]
        if place is None or self.group_size == 1:
            return place
        # (S / g,) -> (S,)
        return (place[:, None] * self.group_size + torch.arange(self.group_size, device=place.device)).flatten()

    def per_token(self, values: Tensor | None) -> Tensor | None:
        """Return values of what merges, (S / g,), for each token, (S,)."""
        return values if values is None or self.group_size == 1 else values.repeat_interleave(self.group_size)

    def unmerge(self, index: int, x: Tensor) -> Tensor:
        """Give every input token its token of those going into block `index` back, (S_i, C) -> (S_0, C).

        Where groups merge, `x` may hold a row or more a group, and as many come back.
        """
        place, source = self.place[index], self.source[index]
        if place is None:
            return x
        rows = x.reshape(len(place), -1)
        if source is not None:
            rows = rows.index_select(0, source.to(x.device))
        else:
            for match in reversed(self.match[:index]):
                rows = rows if match is None else match.unmerge(rows)
        return rows.reshape(-1, x.shape[-1])

    def kept_outputs(self) -> Tensor | None:
        """Return which of the tower's outputs are left, (S_last,) int64, ascending; `None` before any merge."""
        place = self.place[-1]
        if place is None or self.order is None:
            return place
        return self.order.to(place.device).index_select(0, place).sort().values

    def follow(self, index: int, x: Tensor) -> Tensor:
        """Merge values (S_i, C) of what goes into block `index` as that block and later ones merge it."""
        for match, size in zip(self.match[index:], self.size[index:]):
            if match is not None:
                x = match.merge_again(x, None if size is None else size.to(x.device))
        return x

    def summary(self, keep_state: bool) -> PackedSummary:
        """Return what is left to `report` of the pass, and to `trace` where it keeps the state."""
        images = max(len(self.lengths[0]), 1)
        tokens = [tuple(length * self.group_size for length in lengths) for lengths in self.lengths]
        computed = [(sum(lengths) / images, pairs / images) for lengths, pairs in zip(tokens, self.pairs)]
        return PackedSummary(
            [max(lengths, default=0) for lengths in tokens],
            [torch.tensor(lengths) for lengths in tokens],
            computed,
            state=self._traced() if keep_state else None,
            unmerged_pairs=[pairs / images for pairs in self.unmerged_pairs],
            matching=[flops / images for flops in self.matching],
            projected=[count / images for count in self.projected],
            read_before=self.read_before,
        )

    def _traced(self) -> Any:
        """Return where tokens went as a batch of images, (K, N), of which shorter ones are padded."""
        ones = [torch.ones(length, 1) for length in self.lengths[0]]
        last = ones if self.size[-1] is None else self.size[-1].split(self.lengths[-1])
        sources: list[Tensor | None] = [None]
        source = torch.arange(sum(self.lengths[0]), device=self.device)
        for index, match in enumerate(self.match):
            source = source if match is None else match.source.index_select(0, source)
            starts = torch.tensor([0, *self.lengths[index + 1]], device=self.device).cumsum(0)
            parts = [part - start for part, start in zip(source.split(self.lengths[0]), starts)]
            sources.append(pad_sequence(parts, batch_first=True, padding_value=-1))
        return SimpleNamespace(
            source=sources,
            size=[pad_sequence(ones, batch_first=True), pad_sequence(list(last), batch_first=True)],
            tokens=[max(lengths) for lengths in self.lengths],
            batch_size=len(self.lengths[0]),
            device=self.device,
        )

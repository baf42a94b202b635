"""What the blocks of a packed tower carry on to each other in a forward pass: sizes, places, where tokens went."""

from __future__ import annotations

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
    """

    def __init__(
        self,
        *args: Any,
        unmerged_pairs: list[float],
        matching: list[float],
        projected: list[float],
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.unmerged_pairs, self.matching, self.projected = unmerged_pairs, matching, projected


class PackedState:
    """One forward pass through one packed tower.

    Block i reads entry i of each list and writes entry i + 1, so that a block that is run again by gradient
    checkpointing finds what it found the first time.

    Attributes:
        image_bounds: (K + 1,), the cumulative lengths of images, or frames, as they were at first.
        merge_bounds: (W + 1,), those of the segments in which block i merges tokens, the finest that a block has
            attended in so far: images, or windows.
        size: (S_i, 1) going into block i; `None` while nothing has merged.
        place: (S_i,) int64, ascending: the input position that each token keeps; `None` while nothing has merged.
        source: (S_0,) int64, the token that holds each input token going into block i, while all merges are hard.
        match: the merge that block i did.
        merged: whether a merge has happened before block i.
        lengths: how many tokens of each image, or frame, go into block i.
        pairs, unmerged_pairs: pairs of tokens in the attention of block i, over all segments, now and unmerged.
        matching: multiply-adds that comparing the tokens of block i took.
        projected: how many tokens block i's projections would take without merging, those of pads among them.
        next_block: the block whose turn it is.
    """

    def __init__(self, num_layers: int, image_bounds: Tensor | None = None):
        self.num_layers, self.image_bounds = num_layers, image_bounds
        self.merge_bounds: list[Tensor | None] = [None] * (num_layers + 1)
        self.size: list[Tensor | None] = [None] * (num_layers + 1)
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
        self.device = torch.device("cpu")

    def enter(self, hidden_states: Tensor, bounds: Tensor) -> None:
        """Begin with tokens (S, C) of images of cumulative lengths `bounds`, if none are set."""
        self.image_bounds = bounds if self.image_bounds is None else self.image_bounds
        self.device = hidden_states.device
        self.lengths[0] = self._lengths(0, self.image_bounds)

    @torch.compiler.disable  # lengths are data, which torch 2.8 cannot branch on in a graph
    def attention_segments(self, index: int, bounds: Tensor) -> Segments:
        """Return the segments of the tokens going into block `index`, by the cumulative lengths it was called with."""
        before = self.merge_bounds[index - 1] if index else None
        self.merge_bounds[index] = bounds if before is None or len(before) < len(bounds) else before
        segments = Segments([length for length in self._lengths(index, bounds) if length], self.device)
        self.pairs[index] = segments.num_pairs
        self.unmerged_pairs[index] = sum(length**2 for length in bounds.diff().tolist())
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
            starts, image_starts = bounds.tolist(), self.image_bounds.tolist()
            of_image: list[list[int]] = [[] for _ in self.lengths[index]]
            for start, length in zip(starts, lengths):
                of_image[sum(begin <= start for begin in image_starts) - 1].append(length)
            counts = []
            for image, inside in zip(self.lengths[index], of_image):
                counts += shared_out(config.tokens_to_merge(scheduled, image - num_prefix_tokens), inside)
        kept = [(length, count) for length, count in zip(lengths, counts) if length]
        return Segments([length for length, _ in kept], self.device, [count for _, count in kept])

    def _lengths(self, index: int, bounds: Tensor) -> tuple[int, ...]:
        place = self.place[index]
        if place is not None:  # count the tokens whose place is within each segment
            bounds = torch.searchsorted(place, bounds.to(place))
        return tuple(bounds.diff().tolist())

    def pass_on(self, index: int) -> None:
        """Write down that block `index` merges nothing."""
        for entries in (self.size, self.place, self.source):
            entries[index + 1] = entries[index]
        self.merged[index + 1], self.lengths[index + 1] = self.merged[index], self.lengths[index]

    def leave(self, index: int, size: Tensor | None, place: Tensor, match: PackedMerge) -> None:
        """Write down what block `index` hands on, and the merge it did."""
        assert self.image_bounds is not None
        self.size[index + 1], self.place[index + 1], self.match[index] = size, place, match
        source = self.source[index]
        if match.is_hard and (source is not None or not self.merged[index]):
            step = match.source
            self.source[index + 1] = step if source is None else step.index_select(0, source)
        self.merged[index + 1] = True
        self.lengths[index + 1] = self._lengths(index + 1, self.image_bounds)

    def unmerge(self, index: int, x: Tensor) -> Tensor:
        """Give every input token its token of those going into block `index` back, (S_i, C) -> (S_0, C)."""
        source = self.source[index]
        if source is not None:
            return x.index_select(0, source.to(x.device))
        for match in reversed(self.match[:index]):
            x = x if match is None else match.unmerge(x)
        return x

    def summary(self, keep_state: bool) -> PackedSummary:
        """Return what is left to `report` of the pass, and to `trace` where it keeps the state."""
        images = max(len(self.lengths[0]), 1)
        computed = [(sum(lengths) / images, pairs / images) for lengths, pairs in zip(self.lengths, self.pairs)]
        return PackedSummary(
            [max(lengths, default=0) for lengths in self.lengths],
            [torch.tensor(lengths) for lengths in self.lengths],
            computed,
            state=self._traced() if keep_state else None,
            unmerged_pairs=[pairs / images for pairs in self.unmerged_pairs],
            matching=[flops / images for flops in self.matching],
            projected=[count / images for count in self.projected],
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

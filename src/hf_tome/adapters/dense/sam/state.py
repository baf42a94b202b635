"""What the blocks of a tower with windows carry on to each other: a packed sequence, window by window."""

from __future__ import annotations

import torch
from torch import Tensor

from ...encoders.attention import log_size
from ..packed.segments import Segments
from ..packed.state import PackedState
from .attention import TokenLayout
from .grid import WindowGrid

Counts = tuple[int, int, int]
"""Of a block: pairs of queries and keys, tokens that the unmerged block projects, and its pairs."""


class WindowState(PackedState):
    """One forward pass through one tower with windows (see `PackedState`).

    Attributes:
        grid: the places of the tokens.
    """

    grid: WindowGrid

    def __init__(self, num_layers: int):
        super().__init__(num_layers)
        self._layouts: dict[bool, tuple[Tensor | None, TokenLayout, Counts]] = {}

    def layout(self, index: int, window_size: int, proportional: bool) -> TokenLayout:
        """Return where the tokens going into block `index` are, in windows or, for 0, on the whole grid."""
        place, grid, is_windowed = self.place[index], self.grid, window_size > 0
        self.merge_bounds[index] = grid.window_bounds
        made = self._layouts.get(is_windowed)
        if made is None or made[0] is not place:  # something has merged since
            segments, pads, counts = self._segments(index, is_windowed)
            layout = self._make_layout(index, window_size, proportional, segments, pads)
            made = self._layouts[is_windowed] = place, layout, counts
        self.pairs[index], self.projected[index], self.unmerged_pairs[index] = made[2]
        return made[1]

    def _make_layout(
        self, index: int, window_size: int, proportional: bool, segments: Segments, pads: tuple[Tensor, ...]
    ) -> TokenLayout:
        place, size, grid = self.place[index], self.size[index], self.grid
        rows, columns = (
            places if place is None else places.index_select(0, place) for places in (grid.rows, grid.columns)
        )
        sides = (grid.shape[1], grid.shape[2])
        if window_size > 0:
            rows, columns, sides = rows % window_size, columns % window_size, (window_size, window_size)
        bias = None if size is None or not proportional else log_size(size[None], True)[0]
        return TokenLayout(segments, sides, rows, columns, pads, bias)

    def enter_grid(self, grid: WindowGrid) -> None:
        """Begin with tokens on a grid."""
        self.grid, self.device = grid, grid.order.device
        self.image_bounds = grid.image_bounds
        self.lengths[0] = self._lengths(0, grid.image_bounds)

    def _segments(self, index: int, is_windowed: bool) -> tuple[Segments, tuple[Tensor, ...], Counts]:
        """Return the segments in which block `index` attends, the pads of each batch of them (G, P, 2), and counts."""
        grid = self.grid
        if not is_windowed:
            segments = Segments(self._lengths(index, grid.image_bounds), self.device)
            none = torch.zeros(1, 0, 2, dtype=torch.int64, device=self.device)
            pads = tuple(none.expand(count, -1, -1) for count, _ in segments.shapes)
            area = grid.shape[1] * grid.shape[2]
            return segments, pads, (segments.num_pairs, len(grid.order), grid.shape[0] * area**2)
        lengths = self._lengths(index, grid.window_bounds)
        of_window = grid.pads * grid.shape[0]
        segments = Segments(lengths, self.device, [len(pads) for pads in of_window])
        pairs = sum(length * (length + len(pads)) for length, pads in zip(lengths, of_window))
        area = grid.window_size**2
        pads = tuple(torch.stack([of_window[member] for member in batch]) for batch in segments.members)
        return segments, pads, (pairs, area * len(lengths), len(lengths) * area**2)

"""What the blocks of a tower with windows carry on to each other: a packed sequence, window by window."""

from __future__ import annotations

import torch
from torch import Tensor

from ...encoders.attention import log_size
from ..packed.segments import Segments
from ..packed.state import PackedState
from .attention import TokenLayout
from .grid import WindowGrid


class WindowState(PackedState):
    """One forward pass through one tower with windows (see `PackedState`).

    Attributes:
        grid: the places of the tokens.
    """

    grid: WindowGrid

    def __init__(self, num_layers: int):
        super().__init__(num_layers)
        self._layouts: dict[bool, tuple[Tensor | None, TokenLayout]] = {}

    def layout(self, index: int, window_size: int, proportional: bool) -> TokenLayout:
        """Return where the tokens going into block `index` are, in windows or, for 0, on the whole grid."""
        segments, pads = self.segments_of(index, window_size > 0)
        place, size, grid = self.place[index], self.size[index], self.grid
        before, layout = self._layouts.get(window_size > 0, (None, None))
        if layout is not None and before is place:
            return layout  # nothing has merged since
        rows, columns = (
            places if place is None else places.index_select(0, place) for places in (grid.rows, grid.columns)
        )
        sides = (grid.shape[1], grid.shape[2])
        if window_size > 0:
            rows, columns, sides = rows % window_size, columns % window_size, (window_size, window_size)
        bias = None if size is None or not proportional else log_size(size[None], True)[0]
        layout = TokenLayout(segments, sides, rows, columns, pads, bias)
        self._layouts[window_size > 0] = place, layout
        return layout

    def enter_grid(self, grid: WindowGrid) -> None:
        """Begin with tokens on a grid."""
        self.grid, self.device = grid, grid.order.device
        self.image_bounds = grid.image_bounds
        self.lengths[0] = self._lengths(0, grid.image_bounds)

    def segments_of(self, index: int, is_windowed: bool) -> tuple[Segments, tuple[Tensor, ...]]:
        """Return the segments in which block `index` attends, and the pads of each batch of them, (G, P, 2)."""
        grid = self.grid
        self.merge_bounds[index] = grid.window_bounds
        if not is_windowed:
            segments = Segments(self._lengths(index, grid.image_bounds), self.device)
            none = torch.zeros(1, 0, 2, dtype=torch.int64, device=self.device)
            pads = tuple(none.expand(count, -1, -1) for count, _ in segments.shapes)
            self._count(index, segments.num_pairs, len(grid.order), [grid.shape[1] * grid.shape[2]] * grid.shape[0])
            return segments, pads
        lengths = self._lengths(index, grid.window_bounds)
        of_window = grid.pads * grid.shape[0]
        segments = Segments(lengths, self.device, [len(pads) for pads in of_window])
        pairs = sum(length * (length + len(pads)) for length, pads in zip(lengths, of_window))
        area = grid.window_size**2
        self._count(index, pairs, area * len(lengths), [area] * len(lengths))
        return segments, tuple(torch.stack([of_window[member] for member in batch]) for batch in segments.members)

    def _count(self, index: int, pairs: int, projected: int, unmerged: list[int]) -> None:
        self.pairs[index], self.projected[index] = pairs, projected
        self.unmerged_pairs[index] = sum(length**2 for length in unmerged)

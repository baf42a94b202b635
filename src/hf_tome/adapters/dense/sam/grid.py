"""How a grid of tokens falls into windows, the last of which reach over its edges."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor


class WindowGrid:
    """The places of a batch of grids (B, H, W), window by window.

    Attributes:
        shape: (B, H, W).
        window_size: the side of a window; the larger side of the grid where there is none.
        order: (S,) int64, the place in row-major order of each place in the order of windows.
        back: (S,) int64, the inverse.
        rows, columns: (S,) int64, of each place in the order of windows, in its grid.
        image_bounds, window_bounds: cumulative numbers of places of grids and of windows.
        pads: (P, 2) int64 for each window of one grid, row and column in it of the places beyond the grid's edges.
    """

    def __init__(self, shape: tuple[int, int, int], window_size: int, device: torch.device):
        batch_size, height, width = self.shape = shape
        self.window_size = side = window_size or max(height, width)
        down, across = -(-height // side), -(-width // side)
        rows, columns = torch.arange(down * side), torch.arange(across * side)
        # (down, side) and (across, side) -> (windows, side * side)
        row = rows.view(down, 1, side, 1).expand(down, across, side, side).reshape(down * across, -1)
        column = columns.view(1, across, 1, side).expand(down, across, side, side).reshape(down * across, -1)
        is_real = (row < height) & (column < width)
        self.pads = [
            torch.stack([row[window, beyond] % side, column[window, beyond] % side], dim=-1).to(device)
            for window, beyond in enumerate(~is_real)
        ]
        order = (row * width + column)[is_real]
        first = torch.arange(batch_size)[:, None] * height * width
        self.order = (order + first).flatten().to(device)
        self.back = self.order.argsort()
        self.rows, self.columns = (places[is_real].repeat(batch_size).to(device) for places in (row, column))
        lengths = is_real.sum(dim=1).tolist() * batch_size
        self.window_bounds = torch.tensor([0, *accumulate(lengths)], device=device)
        self.image_bounds = torch.arange(batch_size + 1, device=device) * height * width

    def to_windows(self, grid: Tensor) -> Tensor:
        """Take (B, H, W, C) to (S, C), window by window."""
        return grid.flatten(0, 2).index_select(0, self.order)

    def to_grid(self, tokens: Tensor) -> Tensor:
        """Take (S, C), window by window, to (B, H, W, C)."""
        return tokens.index_select(0, self.back).view(*self.shape, -1)

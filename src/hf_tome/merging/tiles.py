"""Matching on a grid of tokens: one destination a cell, partners within a tile."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import HardMerge, check_arguments, identity_merge
from .indexing import take
from .method import GridInputs
from .partition import pseudo_random
from .similarity import LOWEST, TOO_LONG, full_precision, is_zero


@dataclass(frozen=True)
class TileLayout:
    """Which positions of a grid are sources and destinations, tile by tile; it depends on shapes and seed alone.

    A grid that the tiles do not divide is filled up with cells that hold nothing; these are marked False.

    Attributes:
        destinations (`Tensor`): (G, T) int64, the destination of each of T cells in each of G tiles.
        sources (`Tensor`): (G, S) int64, the other tokens of those cells.
        real_destinations, real_sources (`Tensor` or `None`): (G, T) and (G, S) bool; `None` where all are real.
        cells (`Tensor`): (G, T) int64, the number of each cell among all real cells in row-major order.
        by_cell (`Tensor`): (K,) int64, the destination of each real cell.
    """

    destinations: Tensor
    sources: Tensor
    real_destinations: Tensor | None
    real_sources: Tensor | None
    cells: Tensor
    by_cell: Tensor

    def slot_of_cell(self) -> Tensor:
        """Return where each real cell is among the G * T cells of all tiles, (K,) int64."""
        num_cells = self.by_cell.shape[0]
        cells = self.cells
        if self.real_destinations is not None:
            cells = torch.where(self.real_destinations, cells, num_cells)
        slots = torch.arange(cells.numel(), device=cells.device)
        return slots.new_empty(num_cells + 1).scatter(0, cells.flatten(), slots)[:num_cells]


def tile_layout(
    grid: tuple[int, ...], tile: int | None, stride: tuple[int, int], seed: int | Tensor, device: torch.device
) -> TileLayout:
    """Draw one destination a cell of `stride`, from `seed` and the cell's number alone.

    Args:
        grid: (height, width), or (frames, height, width), of tokens in row-major order.
        tile: the side of a tile in tokens; `None` makes each frame one tile.
        stride: height and width of a cell.
        seed: the same seed draws the same destinations on every device.
        device: where the index tensors are made.
    """
    frames, height, width = (1, *grid) if len(grid) == 2 else grid
    cell_height, cell_width = stride
    rows, columns = math.ceil(height / cell_height), math.ceil(width / cell_width)  # cells of a frame
    tile_rows, tile_columns = _split_evenly(rows, cell_height, tile), _split_evenly(columns, cell_width, tile)
    down, across = math.ceil(rows / tile_rows), math.ceil(columns / tile_columns)

    def axis(count: int) -> Tensor:
        return torch.arange(count, device=device)

    # Five axes: frame, tile row, tile column, cell row and cell column in the tile.
    row = (axis(down)[:, None] * tile_rows + axis(tile_rows))[None, :, None, :, None]
    column = (axis(across)[:, None] * tile_columns + axis(tile_columns))[None, None, :, None, :]
    frame = axis(frames)[:, None, None, None, None]
    is_full = rows % tile_rows == 0 and columns % tile_columns == 0
    row, column, frame = torch.broadcast_tensors(row.clamp(max=rows - 1), column.clamp(max=columns - 1), frame)
    cells = (frame * rows + row) * columns + column

    # Cells at the lower and right edges may be cut: their destination is drawn from what there is of them.
    drawn = pseudo_random(frames * rows * columns, seed, device)[cells]
    cut_height = (height - row * cell_height).clamp(max=cell_height)
    cut_width = (width - column * cell_width).clamp(max=cell_width)
    chosen = drawn % cut_height * cell_width + drawn // 65536 % cut_width
    # The others of the cell: every place but the chosen one.
    others = axis(cell_height * cell_width - 1)
    others = others + (others >= chosen[..., None]).long()  # (frames, down, across, tile_rows, tile_columns, P - 1)

    def position(place: Tensor, row: Tensor, column: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, x = row * cell_height + place // cell_width, column * cell_width + place % cell_width
        return (frame * height + y) * width + x, y, x

    destinations, _, _ = position(chosen, row, column, frame)
    sources, y, x = position(others, row[..., None], column[..., None], frame[..., None])
    inside = (y < height) & (x < width)
    sources = torch.where(inside, sources, destinations[..., None])
    num_tiles, num_cells = frames * down * across, tile_rows * tile_columns
    real = None
    if not is_full:
        own_row = (axis(down)[:, None] * tile_rows + axis(tile_rows))[None, :, None, :, None]
        own_column = (axis(across)[:, None] * tile_columns + axis(tile_columns))[None, None, :, None, :]
        real = ((own_row < rows) & (own_column < columns)).expand_as(cells)
        inside = inside & real[..., None]
    is_whole = height % cell_height == 0 and width % cell_width == 0
    by_cell = torch.zeros(frames * rows * columns, dtype=torch.int64, device=device)
    by_cell = by_cell.scatter(0, cells.reshape(-1), destinations.reshape(-1))  # a filling cell repeats its neighbour
    return TileLayout(
        destinations.reshape(num_tiles, num_cells),
        sources.reshape(num_tiles, -1),
        None if real is None else real.reshape(num_tiles, num_cells),
        None if is_full and is_whole else inside.reshape(num_tiles, -1),
        cells.reshape(num_tiles, num_cells),
        by_cell,
    )


def _split_evenly(cells: int, cell_side: int, tile: int | None) -> int:
    """Return the side of a tile in cells, near `tile` tokens, such that the last tile is filled up by little."""
    if tile is None or tile >= cells * cell_side:
        return cells
    return math.ceil(cells / math.ceil(cells * cell_side / tile))


def num_destinations(grid: tuple[int, ...], stride: tuple[int, int]) -> int:
    """Return the number of cells, the fewest tokens that can be left of a grid."""
    frames, height, width = (1, *grid) if len(grid) == 2 else grid
    return frames * math.ceil(height / stride[0]) * math.ceil(width / stride[1])


def tiled_matching(
    metric: Tensor,
    r: int,
    grid: tuple[int, ...],
    *,
    tile: int | None = 16,
    stride: tuple[int, int] = (2, 2),
    seed: int | Tensor = 0,
    combine: str = "weighted_mean",
) -> HardMerge:
    """Match the `r` sources of a grid that are most similar to a destination in their own tile, and merge them.

    Destinations are drawn, one a cell; every other token is a source, with one edge, to the most similar destination
    of its tile (ToMe, section 3, with the sets of "Token Merging for Fast Stable Diffusion", section 4.1). The `r`
    strongest edges of the whole grid merge, so that plain areas give more than detailed ones. Similarities (cosine)
    are computed in float32 or better, G * S * T of them instead of N^2 / 4.

    Args:
        metric (`Tensor`): (B, N, D), with N the product of `grid`.
        r (`int`): tokens to remove, cut to the number of sources.
        grid (`tuple[int, ...]`): (height, width) or (frames, height, width), in row-major order.
        tile (`int`, *optional*): the side of a tile in tokens; `None` matches within the whole frame.
        stride (`tuple[int, int]`): height and width of a cell.
        seed (`int` or `Tensor`): the same seed draws the same destinations, in every image of the batch.
        combine (`str`): how members combine (see `HardMerge`).

    Returns:
        `HardMerge`: N -> N - r tokens: the unmerged sources, then the destinations by cell.

    Raises:
        ValueError: `metric` does not fit the grid, or an argument is out of range.
    """
    check_arguments(metric, 0, r)
    batch_size, num_tokens, _ = metric.shape
    if math.prod(grid) != num_tokens or len(grid) not in (2, 3):
        raise ValueError(f"`grid` is {grid}, but `metric` has {num_tokens} tokens; their product must be that.")
    num_cells = num_destinations(grid, stride)
    r = min(r, num_tokens - num_cells)
    if r == 0:
        return identity_merge(batch_size, num_tokens, metric.device)
    with torch.no_grad():
        layout = tile_layout(grid, tile, stride, seed, metric.device)
        scores, source_scale = half_scaled_scores(metric, layout)  # (B, G, S, T), (B, G * S)
        best = scores.amax(dim=-1).flatten(1)
        best = torch.where(source_scale > 0, best * source_scale, LOWEST)  # the cosine to the best destination
        if layout.real_sources is not None:
            best = best.masked_fill(~layout.real_sources.flatten(), -torch.inf)
        order = best.argsort(dim=1, descending=True, stable=True)  # filling comes last
        merged, unmerged = order[:, :r], order[:, r : num_tokens - num_cells]
        # Partners of the merged tokens alone: finding a maximum's place costs a CPU ten times finding the maximum.
        slot = take(scores.flatten(1, 2), merged).argmax(dim=-1)  # (B, r), the cell in the source's tile
        num_sources = layout.sources.shape[1]
        cell = layout.cells[merged // num_sources, slot]
        sources = layout.sources.flatten()
        kept = torch.cat([sources[unmerged.sort(dim=1).values], layout.by_cell.expand(batch_size, -1)], dim=1)
        return HardMerge(kept, sources[merged], cell + unmerged.shape[1], num_tokens, combine)


def tile_scores(metric: Tensor, bias: Tensor, layout: TileLayout) -> Tensor:
    """Return cosines between sources and destinations of each tile, (B, N, D) -> (B, G, S, T); filling is -inf."""
    sources, destinations = layout.sources.flatten(), layout.destinations.flatten()
    return _products(take(metric, sources), take(metric, destinations), take(bias, destinations), layout)


def _products(sources: Tensor, destinations: Tensor, bias: Tensor, layout: TileLayout) -> Tensor:
    """Return the products of each tile's sources with its destinations, to which a bias of these is added.

    Args:
        sources: (B, G * S, D).
        destinations: (B, G * T, D).
        bias: (B, G * T).
        layout: which of them are filling.

    Returns:
        (B, G, S, T), where destinations that are filling have -inf.
    """
    batch_size, _, dim = sources.shape
    num_tiles, num_sources = layout.sources.shape
    sources = sources.view(batch_size * num_tiles, num_sources, dim)
    destinations = destinations.view(batch_size * num_tiles, -1, dim).transpose(1, 2)
    bias = bias.view(batch_size, num_tiles, -1)
    if layout.real_destinations is not None:
        bias = bias.masked_fill(~layout.real_destinations, -torch.inf)
    with full_precision(sources.device):
        if is_zero(bias):
            scores = torch.bmm(sources, destinations)
        else:
            scores = torch.baddbmm(bias.flatten(0, 1)[:, None], sources, destinations)
    return scores.view(batch_size, num_tiles, num_sources, -1)


def half_scaled_scores(metric: Tensor, layout: TileLayout) -> tuple[Tensor, Tensor]:
    """Return products of each tile's sources with destinations of length 1, and what makes cosines of them.

    Which destination is best does not depend on the length of the source, so that the three quarters of the tokens
    that are sources need not be scaled; their maxima are. In float32 or better. A token that holds a NaN or an
    infinity, or is too long to multiply, scores `LOWEST` as a destination, and has the scale 0 as a source.

    Args:
        metric (`Tensor`): (B, N, D).
        layout: of its grid.

    Returns:
        `tuple[Tensor, Tensor]`: (B, G, S, T), filling is -inf, and the inverse lengths of the sources (B, G * S).
    """
    dtype = torch.promote_types(metric.dtype, torch.float32)
    length = torch.linalg.vector_norm(metric, dim=-1, dtype=dtype)  # (B, N)
    scale = torch.where(length < TOO_LONG, 1 / length.clamp(min=1e-12), 0)  # a NaN is not below anything
    destination_scale = take(scale, layout.destinations.flatten())  # (B, G * T)
    destinations = take(metric, layout.destinations.flatten()).to(dtype) * destination_scale[..., None]
    bias = torch.where(destination_scale > 0, 0.0, LOWEST).to(dtype)
    if not is_zero(bias):
        destinations = destinations.nan_to_num(0.0, 0.0, 0.0)
    sources = layout.sources.flatten()
    return _products(take(metric, sources).to(dtype), destinations, bias, layout), take(scale, sources)


def own_cell_matching(inputs: GridInputs, scores: Tensor, combine: str) -> HardMerge:
    """Merge tokens into the destination of their own cell, whatever they look like: what matching has to beat.

    Args:
        inputs: the grid, and how many tokens to merge; the tile says nothing here.
        scores (`Tensor`): (N,), one a token; those with the highest merge.
        combine (`str`): as in `HardMerge`; `"keep_one"` leaves the destination as it is.
    """
    batch_size, num_tokens, _ = inputs.metric.shape
    layout = tile_layout(inputs.shape, None, inputs.stride, inputs.seed, inputs.metric.device)
    num_cells, num_others = layout.by_cell.shape[0], math.prod(inputs.stride) - 1
    r = min(inputs.r, num_tokens - num_cells)
    sources = layout.sources.flatten()
    ranked = scores[sources].double()
    if layout.real_sources is not None:
        ranked = ranked.masked_fill(~layout.real_sources.flatten(), -torch.inf)
    order = ranked.argsort(descending=True, stable=True)
    merged, unmerged = order[:r], order[r : num_tokens - num_cells]
    cell = layout.cells.flatten()[merged // num_others]
    kept = torch.cat([sources[unmerged.sort().values], layout.by_cell])
    kept, merged, into = (row.expand(batch_size, -1) for row in (kept, sources[merged], cell + unmerged.shape[0]))
    return HardMerge(kept, merged, into, num_tokens, combine)

"""MaMe on a grid of tokens: destinations one a cell, weights within a tile, restored by the same weights (MaRe)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base import Merge, check_arguments, check_tokens, identity_merge, ones_or_checked
from ..indexing import take
from ..similarity import full_precision, sound
from ..tiles import TileLayout, num_destinations, tile_layout, tile_scores
from .fusion_weights import fusion_weights

EPS = 1e-6


class TileMatrixMerge(Merge):
    """A merge of a grid's tokens in which a source is shared out among destinations of its own tile.

    Attributes:
        weights (`Tensor`): (B, G, T, S), what each of T destinations of a tile gets of each of its S sources; columns
            of sources that do not merge are zero, the others sum to 1.
        kept (`Tensor`): (B, M), the input token that each output token starts from: unmerged sources, then the
            destinations by cell.
        merged (`Tensor`): (B, R), the merged sources as slots of the tiles, G * S of them.
    """

    def __init__(self, weights: Tensor, kept: Tensor, merged: Tensor, layout: TileLayout, num_input: int):
        self.weights, self.kept, self.merged, self.layout = weights, kept, merged, layout
        self.num_input, self.num_output = num_input, kept.shape[1]
        self._num_unmerged = kept.shape[1] - layout.by_cell.shape[0]

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fuse sources into destinations (equation 9) and concatenate (equation 10); see the base class."""
        batch_size, channels = self.kept.shape[0], x.shape[-1]
        check_tokens(x, batch_size, self.num_input)
        size = ones_or_checked(size, x)
        num_tiles = self.layout.sources.shape[0]
        # (B, N, C) -> (B, G, S, C)
        sources = take(x, self.layout.sources.flatten()).view(batch_size, num_tiles, -1, channels)
        source_size = take(size, self.layout.sources.flatten()).view(batch_size, num_tiles, -1, 1)
        own = 1 / (1 + self.weights.sum(dim=-1, keepdim=True))  # (B, G, T, 1)
        with full_precision(x.device):
            shares = (self.weights * own).to(x.dtype) @ sources
            gained = self.weights.to(size.dtype) @ source_size
        slots = self.layout.slot_of_cell()
        kept = take(x, self.kept)
        unmerged, destinations = kept.split([self._num_unmerged, slots.shape[0]], dim=1)
        fused = destinations * take(own.flatten(1, 2).to(x.dtype), slots) + take(shares.flatten(1, 2), slots)
        unmerged_size, destination_size = take(size, self.kept).split([self._num_unmerged, slots.shape[0]], dim=1)
        fused_size = destination_size + take(gained.flatten(1, 2), slots)
        return torch.cat([unmerged, fused], dim=1), torch.cat([unmerged_size, fused_size], dim=1)

    def unmerge(self, x: Tensor) -> Tensor:
        """Read a merged source back as its column's weighted sum of destinations (MaRe); see the base class."""
        check_tokens(x, self.kept.shape[0], self.num_output)
        batch_size, channels = x.shape[0], x.shape[-1]
        num_tiles = self.layout.sources.shape[0]
        by_tile = take(x, self.layout.cells.flatten() + self._num_unmerged)  # filling repeats a neighbour, at weight 0
        by_tile = by_tile.view(batch_size, num_tiles, -1, channels)
        with full_precision(x.device):
            restored = self.weights.to(x.dtype).transpose(2, 3) @ by_tile  # (B, G, S, C)
        rows = torch.cat([x, take(restored.flatten(1, 2), self.merged)], dim=1)  # (B, M + R, C)
        return take(rows, self._rows_of_inputs())

    def detach(self) -> TileMatrixMerge:
        """Return the same merge with constant weights (see the base class)."""
        return TileMatrixMerge(self.weights.detach(), self.kept, self.merged, self.layout, self.num_input)

    def _rows_of_inputs(self) -> Tensor:
        """Return for each input token its row in [outputs, merged sources], (B, N)."""
        order = torch.cat([self.kept, self.layout.sources.flatten()[self.merged]], dim=1)
        rows = torch.arange(self.num_input, device=order.device).expand_as(order)
        return torch.empty_like(order).scatter(1, order, rows)

    @property
    def source(self) -> Tensor:
        """Where each input token went, a shared source to its heaviest destination (see the base class)."""
        num_sources = self.layout.sources.shape[1]
        heaviest = take(self.weights.argmax(dim=2).flatten(1)[..., None], self.merged)[..., 0]  # (B, R)
        into = self.layout.cells[self.merged // num_sources, heaviest] + self._num_unmerged
        outputs = torch.arange(self.num_output, device=into.device).expand(into.shape[0], -1)
        return torch.cat([outputs, into], dim=1).gather(1, self._rows_of_inputs())

    @property
    def representative(self) -> Tensor:
        """The input token that each output token started from (see the base class)."""
        return self.kept


def tiled_matrix_matching(
    metric: Tensor,
    grid: tuple[int, ...],
    *,
    threshold: float = 0.8,
    keep_ratio: float | None = None,
    adaptive_pruning: bool = True,
    tile: int | None = 16,
    stride: tuple[int, int] = (2, 2),
    seed: int | Tensor = 0,
) -> Merge:
    """Share each merged source of a grid out among the similar destinations of its own tile.

    The weights are MaMe's (equations 3 to 8), with one destination a cell in place of every second token. All images
    of a batch merge the same number, those sources with the most similar destination: as many as `keep_ratio` asks, or
    as many as have weights in every image.

    Args:
        metric (`Tensor`): (B, N, D), with N the product of `grid`.
        grid (`tuple[int, ...]`): (height, width) or (frames, height, width), in row-major order.
        threshold, adaptive_pruning: as in `matching.matrix_matching`.
        keep_ratio (`float`, *optional*): the share of the tokens that stay, at least the cells.
        tile, stride, seed: as in `tiles.tiled_matching`.
    """
    check_arguments(metric, 0)
    batch_size, num_tokens, _ = metric.shape
    num_cells = num_destinations(grid, stride)
    layout = tile_layout(grid, tile, stride, seed, metric.device)
    metric, bias = sound(metric, unit=True)
    scores = tile_scores(metric, bias, layout)  # (B, G, S, T)
    weights = fusion_weights(scores.flatten(0, 1).transpose(1, 2), threshold, EPS, adaptive_pruning)
    weights = weights.view(batch_size, -1, *weights.shape[1:])  # (B, G, T, S)
    real = layout.real_sources
    best = scores.detach().amax(dim=-1).flatten(1) + take(bias, layout.sources.flatten())  # (B, G * S)
    if real is not None:
        best = best.masked_fill(~real.flatten(), -torch.inf)
    if keep_ratio is not None:
        r = num_tokens - max(math.ceil(keep_ratio * num_tokens - 1e-9), num_cells)
    else:
        has_weights = weights.detach().sum(dim=2).flatten(1) > 0
        r = int((has_weights if real is None else has_weights & real.flatten()).sum(dim=1).min())
        best = torch.where(has_weights, best, best - 4)  # cosines: those without weights come last
    if r == 0:
        return identity_merge(batch_size, num_tokens, metric.device)
    order = best.argsort(dim=1, descending=True, stable=True)
    merged, unmerged = order[:, :r], order[:, r : num_tokens - num_cells]
    chosen = (
        torch.zeros_like(best, dtype=torch.bool).scatter(1, merged, True).view(batch_size, -1, 1, weights.shape[3])
    )
    # A chosen source that no weight holds (nothing above the threshold, or a tie) goes to its best destination whole.
    whole = torch.zeros_like(weights).scatter(2, scores.detach().argmax(dim=-1)[:, :, None], 1.0)
    total = weights.sum(dim=2, keepdim=True)
    weights = torch.where(total > 0, weights / total.clamp(min=EPS), whole) * chosen
    sources = layout.sources.flatten()
    kept = torch.cat([sources[unmerged.sort(dim=1).values], layout.by_cell.expand(batch_size, -1)], dim=1)
    return TileMatrixMerge(weights, kept, merged, layout, num_tokens)

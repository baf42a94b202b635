"""MaMe in tiles, random pruning and downsampling on the grid of a denoiser."""

import math

import pytest
import torch

from hf_tome import MergeConfig
from hf_tome.merging.mame.fusion_weights import fusion_weights
from hf_tome.merging.mame.tiled import TileMatrixMerge, tiled_matrix_matching
from hf_tome.merging.method import GridInputs
from hf_tome.merging.methods import get_method
from hf_tome.merging.tiles import tile_layout

GRIDS = [(8, 8), (7, 9), (2, 7, 5)]


def tokens(grid, images=2, width=12):
    rows = torch.randn(images, math.prod(grid), width, generator=torch.Generator().manual_seed(0))
    return rows + 2 * torch.ones(width)  # alike enough for a threshold


def match(method, grid, ratio=0.5, images=2, **fields):
    row = get_method(method)
    values = MergeConfig(method=method, where="denoiser", **fields).match_fields(row)
    x = tokens(grid, images)
    return x, row.match_grid(GridInputs(x, int(ratio * x.shape[1]), grid, 4, (2, 2), torch.tensor(5), values))


CASES = {
    "threshold": ("mame", {"threshold": 0.9}),
    "keep": ("mame", {"keep_ratio": 0.6}),
    "unpruned": ("mame", {"keep_ratio": 0.5, "adaptive_pruning": False}),
    "random": ("random_prune", {}),
    "downsample": ("downsample", {}),
}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_what_every_merge_has_to_do(case, grid):
    method, fields = CASES[case]
    x, merge = match(method, grid, **fields)
    num_tokens = math.prod(grid)
    merged, size = merge.merge(x)
    assert merged.shape == (2, merge.num_output, x.shape[2])
    assert merge.num_output < num_tokens
    torch.testing.assert_close(size.sum(dim=1), torch.full((2, 1), float(num_tokens)))
    constant = torch.full_like(x, 3.0)
    torch.testing.assert_close(merge.unmerge(merge.merge(constant)[0]), constant)
    restored = merge.unmerge(merged)
    assert restored.shape == x.shape
    source, kept = merge.source, merge.representative
    assert torch.equal(source.gather(1, kept), torch.arange(merge.num_output).expand(2, -1))
    alone = (source[..., None] == source[:, None]).sum(dim=-1) == 1
    size_of = size[..., 0].gather(1, source)
    untouched = alone & (size_of == 1)
    torch.testing.assert_close(restored[untouched], x[untouched])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("case", ["keep", "unpruned"])
def test_an_image_merges_as_it_would_alone(case, grid):
    method, fields = CASES[case]
    x, together = match(method, grid, **fields)
    alone = get_method(method).match_grid(
        GridInputs(x[1:], 0, grid, 4, (2, 2), torch.tensor(5), MergeConfig(method=method, **fields).match_fields())
    )
    torch.testing.assert_close(together.merge(x)[0][1:], alone.merge(x[1:])[0])


def test_one_tile_is_mame_with_one_destination_a_cell():
    x = tokens((4, 6), images=1)
    merge = tiled_matrix_matching(x, (4, 6), threshold=0.3, tile=None, seed=2)
    assert isinstance(merge, TileMatrixMerge)
    layout = tile_layout((4, 6), None, (2, 2), 2, x.device)
    unit = x / x.norm(dim=-1, keepdim=True)
    scores = unit[:, layout.destinations[0]] @ unit[:, layout.sources[0]].transpose(1, 2)  # (B, T, S)
    weights = fusion_weights(scores, 0.3, 1e-6, True)
    shared = weights.sum(dim=1) > 0
    assert merge.num_output == 24 - int(shared.sum())
    own = 1 + weights.sum(dim=2)[0]
    fused = (x[0, layout.destinations[0]] + weights[0] @ x[0, layout.sources[0]]) / own[:, None]
    by_cell = fused[layout.slot_of_cell()]
    torch.testing.assert_close(merge.merge(x)[0][0, -6:], by_cell, rtol=1e-4, atol=1e-4)
    y = torch.randn(1, merge.num_output, 3)
    restored = merge.unmerge(y)[0, layout.sources[0]][shared[0]]
    slots = layout.slot_of_cell().argsort()
    expected = (weights[0].T @ y[0, -6:][slots])[shared[0]]
    torch.testing.assert_close(restored, expected, rtol=1e-4, atol=1e-4)


def test_controls_merge_within_cells():
    grid = (7, 9)
    for method in ("random_prune", "downsample"):
        x, merge = match(method, grid, ratio=0.6)
        place = merge.representative.gather(1, merge.source)
        here = torch.arange(63)
        assert torch.equal(place // 9 // 2, (here // 9 // 2).expand(2, -1))
        assert torch.equal(place % 9 // 2, (here % 9 // 2).expand(2, -1))
    _, pruned = match("random_prune", grid)
    assert torch.equal(pruned.merge(x)[0], x.gather(1, pruned.representative[..., None].expand(-1, -1, 12)))


def test_downsampling_is_for_denoisers_alone():
    assert MergeConfig(method="downsample", ratio=0.5).method == "downsample"
    for where in ("tower", "projected", "cache"):
        with pytest.raises(
            ValueError,
            match=r"method 'downsample' means something with `where` 'auto' or 'denoiser' alone",
        ):
            MergeConfig(method="downsample", where=where)

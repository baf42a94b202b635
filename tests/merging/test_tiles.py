"""Matching on a grid: layouts cover it, partners stay in their tile, and the strongest edges merge."""

import math

import pytest
import torch

from hf_tome.merging.tiles import num_destinations, tile_layout, tiled_matching

GRIDS = [(8, 8), (16, 12), (7, 9), (5, 33), (1, 6), (3, 8, 6), (2, 7, 5)]


@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("tile", [4, 6, None], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_sources_and_destinations_cover_the_grid_once(grid, tile, stride):
    layout = tile_layout(grid, tile, stride, seed=3, device=torch.device("cpu"))
    sources = layout.sources if layout.real_sources is None else layout.sources[layout.real_sources]
    real = layout.destinations if layout.real_destinations is None else layout.destinations[layout.real_destinations]
    everything = torch.cat([sources.flatten(), real.flatten()])
    assert everything.sort().values.tolist() == list(range(math.prod(grid)))
    assert layout.by_cell.sort().values.tolist() == real.flatten().sort().values.tolist()
    assert len(layout.by_cell) == num_destinations(grid, stride)


def test_destinations_are_drawn_from_the_seed():
    def draw(seed: int) -> list[int]:
        return tile_layout((16, 16), 8, (2, 2), seed, torch.device("cpu")).by_cell.tolist()

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    places = torch.tensor([draw(seed) for seed in range(200)])  # every place of a cell is drawn about as often
    counts = torch.stack([places // 16 % 2 * 2 + places % 2 == place for place in range(4)]).float().mean(dim=(1, 2))
    assert (counts - 0.25).abs().max() < 0.01  # 12,800 draws: three standard deviations


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_merges_the_strongest_edges_of_each_tile(grid):
    metric = torch.randn(2, math.prod(grid), 16, generator=torch.Generator().manual_seed(0))
    r = math.prod(grid) // 2
    match = tiled_matching(metric, r, grid, tile=4, seed=5)
    layout = tile_layout(grid, 4, (2, 2), 5, metric.device)
    unit = metric / metric.norm(dim=-1, keepdim=True)
    for image in range(2):
        edges = {}
        for tile in range(layout.sources.shape[0]):
            cells = [
                int(token)
                for slot, token in enumerate(layout.destinations[tile])
                if layout.real_destinations is None or layout.real_destinations[tile, slot]
            ]
            for slot, source in enumerate(layout.sources[tile].tolist()):
                if layout.real_sources is None or layout.real_sources[tile, slot]:
                    scores = unit[image, source] @ unit[image, cells].T
                    edges[source] = (float(scores.max()), cells[int(scores.argmax())])
        strongest = sorted(edges, key=lambda token: -edges[token][0])[:r]
        assert set(match.merged[image].tolist()) == set(strongest)
        for token, into in zip(match.merged[image].tolist(), match.into[image].tolist()):
            assert int(match.kept[image, into]) == edges[token][1]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_merge_and_unmerge(grid):
    num_tokens = math.prod(grid)
    x = torch.randn(2, num_tokens, 8)
    most = num_tokens - num_destinations(grid, (2, 2))
    for r in (0, most // 2, most, most + 7):
        match = tiled_matching(x, r, grid, tile=4)
        merged, size = match.merge(x)
        assert merged.shape == (2, num_tokens - min(r, most), 8)
        assert size.sum(dim=1).flatten().tolist() == [num_tokens] * 2
        restored = match.unmerge(merged)
        assert restored.shape == x.shape
        assert restored.mean(dim=1) == pytest.approx(x.mean(dim=1), abs=1e-5)  # every token holds its group's mean


def test_equal_tokens_merge_without_loss_and_broken_tokens_last():
    x = torch.randn(1, 8, 8).repeat_interleave(2, 1).repeat_interleave(4, 0).reshape(1, 64, 8)
    x = x.clone()
    x[0, 9] = torch.nan
    match = tiled_matching(x, 20, (8, 8))
    assert 9 not in match.merged[0].tolist()


def test_compiled_graphs_give_the_same():
    x = torch.randn(2, 7 * 9, 8)

    def both(x):
        match = tiled_matching(x, 20, (7, 9), tile=4, seed=2)
        return match.unmerge(match.merge(x)[0])

    assert torch.equal(torch.compile(both, fullgraph=True, backend="eager")(x), both(x))


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`grid` is \(3, 3\), but `metric` has 8 tokens"):
        tiled_matching(torch.randn(1, 8, 4), 2, (3, 3))

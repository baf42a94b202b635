"""Pairs of cached entries are matched by what merging them changes in the output of attention."""

from __future__ import annotations

import pytest
import torch
from decoders import decoder

from hf_tome import MergeConfig, apply
from hf_tome.adapters.kv_cache.layers.entries import Entries
from hf_tome.adapters.kv_cache.layers.growing import GrowingStorage
from hf_tome.adapters.kv_cache.layers.merge_span import _merged
from hf_tome.adapters.kv_cache.layers.pair_costs import match_by_change
from hf_tome.merging import similarity
from hf_tome.merging.base import HardMerge
from hf_tome.patching.patch import context_of, is_patched


def costs(keys, values, mass):
    """Return the cost of every pair (B, N, N), as its definition has it."""
    unit = torch.nn.functional.normalize(keys, dim=-1)
    distance = (1 - unit @ unit.transpose(1, 2)) * torch.cdist(values, values).square()
    return distance * mass[:, :, None] * mass[:, None] / (mass[:, :, None] + mass[:, None])


@pytest.mark.parametrize("causal", [False, True])
def test_the_cheapest_pairs_merge(causal, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK", 64)
    torch.manual_seed(0)
    keys, values = torch.randn(2, 2, 20, 6, dtype=torch.float64).unbind(0)
    mass = torch.rand(2, 20, dtype=torch.float64) + 0.01
    destinations = torch.tensor([[1, 4, 7, 9, 12, 15, 19], [0, 3, 8, 11, 14, 16, 19]])
    merge = match_by_change(keys, values, mass, 12, destinations, causal=causal)
    assert merge.num_output == 12
    table = costs(keys, values, mass)
    for row in range(2):
        sources = [at for at in range(20) if at not in destinations[row].tolist()]
        pairs = {
            source: min(
                (float(table[row, source, at]), at) for at in destinations[row].tolist() if not causal or at > source
            )
            for source in sources
        }
        cheapest = sorted(sources, key=lambda source: pairs[source])[:8]
        assert sorted(merge.merged[row].tolist()) == sorted(cheapest)
        into = merge.kept[row].gather(0, merge.into[row]).tolist()
        assert into == [pairs[source][1] for source in merge.merged[row].tolist()]


def test_alike_values_or_little_attention_cost_little():
    keys = torch.tensor([[[1.0, 0], [0, 1], [1, 0.1], [0, 1.1]]])
    values = torch.tensor([[[1.0], [1.0], [5.0], [9.0]]])
    destinations = torch.tensor([[1, 3]])
    even = torch.full((1, 4), 0.25)
    assert match_by_change(keys, values, even, 3, destinations).merged.item() == 0  # whose value entry 1 has, too
    values = torch.tensor([[[1.0], [9.0], [5.0], [9.0]]])
    little = torch.tensor([[0.4, 0.3, 1e-6, 0.3]])
    assert match_by_change(keys, values, little, 3, destinations).merged.item() == 2


def test_broken_entries_merge_last():
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 10, 4).unbind(0)
    keys[0, 2], values[0, 4] = torch.nan, torch.inf
    merge = match_by_change(keys, values, torch.ones(1, 10), 7, torch.arange(1, 10, 2)[None])
    assert set(merge.merged[0].tolist()) == {0, 6, 8}


def test_storage_grows_in_place_until_it_is_full():
    storage = GrowingStorage()
    held = Entries(torch.rand(1, 2, 40, 4), torch.rand(1, 2, 40, 4), torch.rand(1, 2, 40), torch.rand(1, 2, 40))
    new = held.part(0, 3)
    before, pointers = held, []
    with torch.no_grad():
        for _ in range(6):
            held = storage.append(held, new)
            pointers.append(held.keys.data_ptr())
    assert held.length == 58
    assert torch.equal(held.keys, torch.cat([before.keys, *[new.keys] * 6], dim=2))
    assert len(set(pointers)) == 1
    assert storage.num_bytes(held) == 59 * 2 * (4 + 4 + 1 + 1) * 4
    with torch.no_grad():
        assert storage.append(held, new).keys.data_ptr() != pointers[0]
    assert storage.append(held, new).length == 61  # with gradients, where nothing is written to what others may need


@pytest.mark.parametrize(("destinations", "least"), [("keydiff", 0.5), ("alternating", 0.1)])
def test_destinations_that_receive_nothing_yet_stay_what_they_are(destinations, least):
    """What merges into them receives much, and would take their place in a mean by attention alone."""
    config = MergeConfig(where="cache", keep_ratio=0.5, size="fitted", destinations=destinations)
    rule = next(context_of(x).detail.rule for x in apply(decoder(), config).modules() if is_patched(x))
    keys = torch.eye(4)[None, None]
    span = Entries(keys, keys, torch.ones(1, 1, 4), torch.arange(4)[None, None])
    received = torch.tensor([[[0.5, 1e-6, 0.2, 0.2]]])
    merge = HardMerge(torch.tensor([[2, 1, 3]]), torch.tensor([[0]]), torch.tensor([[1]]), 4)
    merged, together = _merged(span, merge, rule, received)
    assert merged.positions.flatten().tolist() == [1, 2, 3]
    assert least < merged.values[0, 0, 0, 1] < 1
    assert torch.allclose(merged.values[0, 0, 0, :2].sum(), torch.tensor(1.0))
    assert torch.allclose(together, torch.tensor([[[0.500001, 0.2, 0.2]]]))

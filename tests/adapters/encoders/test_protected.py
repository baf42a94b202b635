"""`protect_attended`: the attention of the class token, or of the mean query, keeps tokens from merging early."""

from dataclasses import replace

import pytest
import torch
from zoo import ZOO

import hf_tome
from hf_tome import MergeConfig
from hf_tome.adapters.encoders import block
from hf_tome.adapters.encoders.attention import MOST_ATTENDED

BY_NAME = {row.name: row for row in ZOO}


def attended(monkeypatch, model, zoo, config, batch_size=2):
    """Return what the first block's method was told, (B, N)."""
    seen = []
    match = block._match
    monkeypatch.setattr(block, "_match", lambda *args: (seen.append(args[1].attended), match(*args))[1])
    hf_tome.apply(model, config)
    zoo.run(model, batch_size)
    return seen[0]


@pytest.mark.parametrize("name", ["vit", "deit", "beit"])
def test_it_is_a_row_of_the_models_own_attention(monkeypatch, name):
    zoo = BY_NAME[name]
    model = zoo.make("eager")
    weights = model(**zoo.inputs(2), output_attentions=True).attentions[0]  # (B, H, N, N)
    told = attended(monkeypatch, model, zoo, MergeConfig(r=4, protect_attended=0.1))
    count = 2 if name == "deit" else 1
    rows = weights[:, :, :count].mean(dim=(1, 2))
    expected = (rows / rows[:, count:].mean(dim=1, keepdim=True)).clamp(max=MOST_ATTENDED)
    torch.testing.assert_close(told, expected)


def test_without_a_class_token_the_mean_query_pays(monkeypatch):
    zoo = BY_NAME["videomae"]
    told = attended(monkeypatch, zoo.make(), zoo, MergeConfig(r=4, protect_attended=0.1))
    assert told.mean(dim=1).tolist() == pytest.approx([1, 1], abs=0.2)
    assert told.min() >= 0
    assert told.max() <= MOST_ATTENDED


def test_it_changes_what_merges_and_nothing_where_it_is_0(monkeypatch):
    zoo = BY_NAME["vit"]
    model = zoo.make()
    told = attended(monkeypatch, model, zoo, MergeConfig(r=8))
    plain = zoo.run(model)
    assert told is None
    assert not torch.equal(zoo.run(hf_tome.apply(model, r=8, protect_attended=5)), plain)
    unmerged = zoo.run(hf_tome.remove(model))
    assert torch.equal(zoo.run(hf_tome.apply(model, protect_attended=0.5, combine="keep_norm")), unmerged)


def test_it_costs_a_row_a_block():
    model = BY_NAME["vit"].make()
    costs = [
        hf_tome.report(hf_tome.apply(model, config)).towers[0].gflops
        for config in (MergeConfig(r=[8]), MergeConfig(r=[8], protect_attended=0.1))
    ]
    assert (costs[1] - costs[0]) * 1e9 == pytest.approx(65 * 32)


def test_a_method_without_it_and_a_value_out_of_range():
    with pytest.raises(ValueError, match=r"`protect_attended` is 0\.1, but method 'mame' does not use it"):
        MergeConfig(method="mame", protect_attended=0.1)
    with pytest.raises(ValueError, match=r"`protect_attended` is 0\.1 and `distance` is 'dot'"):
        MergeConfig(protect_attended=0.1, distance="dot")
    with pytest.raises(ValueError, match="`protect_attended` is -1; it takes a number from 0 to 10"):
        MergeConfig(protect_attended=-1)
    assert replace(MergeConfig(r=4), protect_attended=1).protect_attended == 1.0

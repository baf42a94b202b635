"""`combine="keep_norm"` in a tower: a merged token's value in attention is multiplied by its members' coherence."""

import pytest
import torch
from zoo import ZOO

import hf_tome
from hf_tome.adapters.encoders.attention import AttentionCall

BY_NAME = {row.name: row for row in ZOO}


def scales(monkeypatch, model, zoo, **fields):
    """Return the scale of the values of each block's attention."""
    seen = []
    scale_value = AttentionCall.scale_value
    monkeypatch.setattr(
        AttentionCall, "scale_value", lambda call, *args: (seen.append(call.value_scale), scale_value(call, *args))[1]
    )
    zoo.run(hf_tome.apply(model, **fields))
    return seen


@pytest.mark.parametrize("name", ["vit", "clip", "videomae"])
def test_values_are_scaled_where_merged_tokens_keep_their_norm(monkeypatch, name):
    zoo = BY_NAME[name]
    model = zoo.make()
    seen = scales(monkeypatch, model, zoo, r=4, combine="keep_norm")
    assert seen[0] is None
    for scale in seen[1:]:
        assert scale.max() == 1
        assert 0 < scale.min() < 1
    assert all(scale is None for scale in scales(monkeypatch, model, zoo, r=4)[-len(seen) :])


def test_backends_agree():
    zoo = BY_NAME["vit"]
    sdpa, eager = (hf_tome.apply(zoo.make(name), r=4, combine="keep_norm") for name in ("sdpa", "eager"))
    merged = zoo.run(sdpa)
    torch.testing.assert_close(zoo.run(eager), merged)
    assert not torch.allclose(zoo.run(hf_tome.apply(sdpa, r=4)), merged)


def test_blocks_that_do_not_merge_hand_the_coherence_on(monkeypatch):
    zoo = BY_NAME["vit"]
    seen = scales(monkeypatch, zoo.make(), zoo, r=[4], combine="keep_norm")
    assert seen[1] is not None
    assert all(torch.equal(scale, seen[1]) for scale in seen[2:])

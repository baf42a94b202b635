"""`merged`: merging within a `with` block, after which the model is exactly what it was; short forms of `apply`."""

import pytest
import torch
from zoo import ZOO

from hf_tome import MergeConfig, apply, get_config, is_merged, merged, remove, report, trace
from hf_tome.api import targets

VIT = next(zoo for zoo in ZOO if zoo.name == "vit")


def test_a_plain_model_is_plain_again():
    model = VIT.make()
    plain = VIT.run(model)
    with merged(model, MergeConfig(r=8)) as inside:
        assert inside is model
        assert targets(model)[0].config.r == 8
        assert not torch.equal(VIT.run(model), plain)
    assert not targets(model)
    assert torch.equal(VIT.run(model), plain)


def test_an_earlier_merge_is_left_as_it_was():
    """The same merge comes back with its last pass, also after an exception, and can be removed as before."""
    model = VIT.make()
    plain = VIT.run(model)
    apply(model, MergeConfig(r=4, trace=True))
    before = VIT.run(model)
    (tower,), reported, source = targets(model), str(report(model)), trace(model).source
    with merged(model, MergeConfig(r=8)):
        VIT.run(model)
        assert report(model).towers[0].tokens_out == 65 - 3 * 8
    with pytest.raises(IndexError), merged(model, MergeConfig(r=8)):
        raise IndexError
    assert targets(model) == [tower]
    assert str(report(model)) == reported
    assert torch.equal(trace(model).source, source)
    assert torch.equal(VIT.run(model), before)
    assert torch.equal(VIT.run(remove(model)), plain)


def test_a_config_that_does_not_fit_changes_nothing():
    model = apply(VIT.make(), MergeConfig(r=4))
    (tower,) = targets(model)
    with pytest.raises(ValueError, match="layers"), merged(model, MergeConfig(method="mame", layers=[7])):
        raise AssertionError("never entered")
    assert targets(model) == [tower]


def test_fields_are_short_for_a_config():
    model = VIT.make()
    assert not is_merged(model)
    assert get_config(model) is None
    assert get_config(apply(model, r=8)) == MergeConfig(r=8)
    assert is_merged(model)
    with merged(model, method="mame", threshold=0.7):
        assert get_config(model) == MergeConfig(method="mame", threshold=0.7)
    assert get_config(model) == MergeConfig(r=8)
    with pytest.raises(TypeError, match="both a `config` and 'r'"):
        apply(model, MergeConfig(r=4), r=8)
    with pytest.raises(ValueError, match="Unknown merge config fields"):
        apply(model, ratios=8)
    with pytest.raises(TypeError, match="`config` is a NoneType"):
        apply(model)
    assert get_config(model) == MergeConfig(r=8)


def test_auto_is_the_tower():
    assert MergeConfig(r=8).where == "auto"
    with torch.no_grad():
        auto, tower = (VIT.run(apply(VIT.make(), r=8, where=where)) for where in ("auto", "tower"))
    assert torch.equal(auto, tower)

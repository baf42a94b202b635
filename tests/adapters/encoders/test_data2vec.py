"""Data2VecVision: biases of relative positions, tuples and weights, which its blocks handle by themselves."""

import pytest
import torch
from dense_zoo import DENSE_ZOO
from zoo import ZOO

from hf_tome import MergeConfig, apply
from hf_tome.api import targets

BY_NAME = {zoo.name: zoo for zoo in (*ZOO, *DENSE_ZOO)}
both_biases = pytest.mark.parametrize("name", ["data2vec-vision", "data2vec-vision-shared"])


@both_biases
def test_other_sizes_of_picture(name):
    """The encoder makes the shared bias for as many tokens as go into a block, which are fewer once they merge."""
    zoo = BY_NAME[name]
    model, pixels = zoo.make(), torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for interpolates in (False, True):
            plain = model(pixels, interpolate_pos_encoding=interpolates).logits
            same = apply(model, MergeConfig(r=0))(pixels, interpolate_pos_encoding=interpolates).logits
            assert torch.equal(same, plain)
            merged = apply(model, MergeConfig(r=6))(pixels, interpolate_pos_encoding=interpolates).logits
            apply(model, MergeConfig(r=0))
            assert 1e-4 < (merged - plain).abs().max() < 1


@both_biases
def test_equal_patches_merge_without_a_trace_where_positions_are_unknown(name):
    zoo = BY_NAME[name]
    model, patch = zoo.make(), torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "position" in parameter_name:
                parameter.zero_()
        pixels = patch.repeat(1, 1, 8, 8)
        plain = model(pixels).logits
        merged = apply(model, MergeConfig(r=16, proportional_attention=True))(pixels).logits
    torch.testing.assert_close(merged, plain, atol=1e-4, rtol=1e-4)


@both_biases
def test_a_bias_follows_its_token(name):
    """What a merge leaves that keeps one token of each pair attends as unmerged, among the tokens that are left."""
    zoo = BY_NAME[name]
    model, inputs = zoo.make("eager"), zoo.inputs(1)
    with torch.no_grad():
        plain = model(**inputs, output_attentions=True).attentions
        config = MergeConfig(r=8, layers=[0], combine="keep_one", proportional_attention=False, trace=True)
        merged = apply(model, config)(**inputs, output_attentions=True)
    kept = targets(model)[0].recorder.summary.state.match[0].representative[0]
    weights = plain[1][:, :, kept][..., kept]
    torch.testing.assert_close(merged.attentions[1], weights / weights.sum(dim=-1, keepdim=True))
    assert torch.equal(merged.attentions[0], plain[0])
    assert [weights.shape[-1] for weights in merged.attentions] == [65, 57, 57]


def test_tuples_of_the_segmentation_model():
    zoo = BY_NAME["data2vec-vision-segmentation"]
    model, inputs = zoo.make(), zoo.inputs(1)
    with torch.no_grad():
        plain = model(**inputs, return_dict=False)
        apply(model, MergeConfig(r=6))
        merged, named = model(**inputs, return_dict=False), model(**inputs)
    assert [type(entry) for entry in merged] == [type(entry) for entry in plain]
    assert torch.equal(merged[0], named.logits)

"""EoMT and VideoMT: queries join before the last blocks and never merge, and every patch is back for the masks."""

from dataclasses import replace

import pytest
import torch
from dense_zoo import DENSE_ZOO

from hf_tome import MergeConfig, UnsupportedModelError, apply, report
from hf_tome.api import targets
from hf_tome.patching.patch import is_patched

BY_NAME = {zoo.name: zoo for zoo in DENSE_ZOO}
QUERIES, SPECIAL = 5, 3
LATE = {
    "tome": MergeConfig(r=8, layers=[3]),
    "greedy": MergeConfig(method="greedy", r=8, layers=[2, 3]),
}
both_models = pytest.mark.parametrize("name", ["eomt", "eomt_dinov3"])


def seen_by_blocks(model):
    seen = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    return seen


@both_models
def test_blocks_behind_the_queries_merge(name):
    zoo = BY_NAME[name]
    model = apply(zoo.make(), MergeConfig(r=6))
    seen = seen_by_blocks(model)
    with torch.no_grad():
        out = model(**zoo.inputs(2))
    assert seen == [67, 61, 55, QUERIES + 49]
    assert out.last_hidden_state.shape[1] == QUERIES + SPECIAL + 64
    assert report(model).towers[0].tokens[-1] == (49, 43)
    assert "never merge" in str(report(model))


@pytest.mark.parametrize("config", LATE.values(), ids=LATE.keys())
def test_equal_patches_merge_behind_the_queries_without_a_trace(config):
    """Each patch stands four times in the picture, and proportional attention takes the merged one for all of them."""
    zoo = BY_NAME["eomt"]
    model, inputs = zoo.make(), zoo.inputs(2)
    model.embeddings.position_embeddings.weight.data.zero_()
    patches = inputs["pixel_values"][..., :16, :16].unflatten(-1, (4, 4)).unflatten(-3, (4, 4))
    twice = patches.repeat_interleave(2, dim=-4).repeat_interleave(2, dim=-2)  # (B, C, 8, 4, 8, 4)
    inputs["pixel_values"] = twice.flatten(-4, -3).flatten(-2)
    with torch.no_grad():
        plain = model(**inputs)
        merged = apply(model, replace(config, proportional_attention=True))(**inputs)
    tokens = report(model).towers[0].tokens
    assert tokens[-1][1] < tokens[0][0]
    torch.testing.assert_close(merged.masks_queries_logits, plain.masks_queries_logits, atol=1e-3, rtol=1e-3)


@both_models
def test_merging_nothing_more_behind_the_queries(name):
    """Blocks that merge nothing attend to what is left as the model does to all: one merge, before and behind."""
    zoo = BY_NAME[name]
    model = apply(zoo.make(), MergeConfig(r=6, layers=[0], trace=True))
    with torch.no_grad():
        out = model(**zoo.inputs(2))
    source = targets(model)[0].recorder.summary.state.source[-1]
    tokens = out.last_hidden_state[:, QUERIES:]
    for image, group in enumerate(source):
        for token in group.unique():
            members = tokens[image, group == token]
            assert torch.equal(members, members[:1].expand_as(members))


@both_models
def test_masks_between_the_blocks_see_every_patch(name):
    """As long as it trains, EoMT predicts masks before each of its last blocks, whose queries attend within them."""
    zoo = BY_NAME[name]
    model = zoo.make()
    model.attn_mask_probs.fill_(1)
    seen = seen_by_blocks(model)
    with torch.no_grad():
        plain = zoo.run(model)
        assert torch.equal(zoo.run(apply(model, MergeConfig(r=6, layers=[3]))), plain)
        merged = zoo.run(apply(model, MergeConfig(r=6)))
    assert seen[3] == seen[-1] == QUERIES + SPECIAL + 64
    assert not torch.allclose(merged, plain, atol=1e-3)
    assert report(model).towers[0].tokens[-2:] == ((55, 67), (67, 67))


def test_training_sees_every_patch():
    zoo = BY_NAME["eomt"]
    model = apply(zoo.make(), MergeConfig(r=6)).train()
    seen = seen_by_blocks(model)
    zoo.run(model).square().mean().backward()
    assert seen[-1] == QUERIES + SPECIAL + 64
    assert model.layers[0].attention.q_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("config", [MergeConfig(r=6, protect_attended=0.5), MergeConfig(r=6, combine="keep_norm")])
@both_models
def test_other_choices_behind_the_queries(name, config):
    zoo = BY_NAME[name]
    model = apply(zoo.make(), config)
    with torch.no_grad():
        assert torch.isfinite(zoo.run(model)).all()
    assert report(model).towers[0].tokens[-1] == (49, 43)


def test_frames_of_a_clip_merge_by_themselves():
    model = apply(BY_NAME["videomt"].make(), MergeConfig(r=6))
    frames = torch.randn(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        clip = model(pixel_values_videos=frames).masks_queries_logits
        first = model(pixel_values_videos=frames[:, :1]).masks_queries_logits
    assert clip.shape == (2, 5, 16, 16)
    torch.testing.assert_close(clip[:1], first, atol=1e-4, rtol=1e-4)  # later frames hear of earlier ones
    assert [is_patched(layer) for layer in model.layers] == [True, True, True, False]


def test_merging_after_the_queries_of_frames_join():
    with pytest.raises(ValueError, match=r"before block 3 \(`num_blocks`\)"):
        apply(BY_NAME["videomt"].make(), MergeConfig(r=6, layers=[3]))


def test_pruning_is_unsupported():
    with pytest.raises(UnsupportedModelError, match="needs every token"):
        apply(BY_NAME["eomt"].make(), MergeConfig(method="random_prune", r=6))

"""EoMT and VideoMT: tokens merge before the queries join, and every patch is back by then."""

import pytest
import torch
from dense_zoo import DENSE_ZOO

from hf_tome import MergeConfig, UnsupportedModelError, apply, report
from hf_tome.patching.patch import is_patched

BY_NAME = {zoo.name: zoo for zoo in DENSE_ZOO}


@pytest.mark.parametrize("name", ["eomt", "eomt_dinov3"])
def test_masks_between_the_blocks_see_every_patch(name):
    """As long as it trains, EoMT predicts masks before each of its last blocks, whose queries attend within them."""
    zoo = BY_NAME[name]
    model, seen = zoo.make(), []
    model.attn_mask_probs.fill_(1)
    model.layers[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        plain = zoo.run(model)
        merged = zoo.run(apply(model, MergeConfig(r=6)))
    assert seen[0] == seen[1] == (2, 5 + 3 + 64, 32)  # queries, class token and registers, patches
    assert merged.shape == plain.shape
    assert not torch.allclose(merged, plain, atol=1e-3)
    assert [is_patched(layer) for layer in model.layers] == [True, True, True, False]
    assert report(model).towers[0].tokens[-1][1] == 49


def test_frames_of_a_clip_merge_by_themselves():
    model = apply(BY_NAME["videomt"].make(), MergeConfig(r=6))
    frames = torch.randn(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        clip = model(pixel_values_videos=frames).masks_queries_logits
        first = model(pixel_values_videos=frames[:, :1]).masks_queries_logits
    assert clip.shape == (2, 5, 16, 16)
    torch.testing.assert_close(clip[:1], first, atol=1e-4, rtol=1e-4)  # later frames hear of earlier ones


@pytest.mark.parametrize("name", ["eomt", "videomt"])
def test_merging_after_the_queries_join(name):
    with pytest.raises(ValueError, match=r"before block 3 \(`num_blocks`\)"):
        apply(BY_NAME[name].make(), MergeConfig(r=6, layers=[3]))


def test_pruning_is_unsupported():
    with pytest.raises(UnsupportedModelError, match="needs every token"):
        apply(BY_NAME["eomt"].make(), MergeConfig(method="random_prune", r=6))

"""Windows that are rows of the batch: tokens keep their place, and blocks that attend over all windows see all."""

import pytest
import torch
from dense_zoo import DENSE_ZOO
from torch.utils.flop_counter import FlopCounterMode

from hf_tome import MergeConfig, apply, report
from hf_tome.inspection.flops import NORM_FLOPS

BACKBONES = [zoo for zoo in DENSE_ZOO if zoo.name in ("rf_detr_dinov2", "lw_detr_vit")]
CONFIGS = {
    "tome": MergeConfig(r=4, layers=[1]),
    "mame": MergeConfig(method="mame", threshold=0.3, layers=[1]),
}
every_backbone = pytest.mark.parametrize("zoo", BACKBONES, ids=lambda zoo: zoo.name)


def without_positions(zoo):
    model = zoo.make()
    with torch.no_grad():
        model.embeddings.position_embeddings.zero_()
    return model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@every_backbone
def test_maps_move_with_the_windows(zoo, config):
    model = apply(without_positions(zoo), config)
    inputs = zoo.inputs(2)
    moved = {"pixel_values": inputs["pixel_values"].roll((16, 16), dims=(-2, -1))}  # 2 x 2 windows of 16 pixels
    with torch.no_grad():
        maps, after = model(**inputs).feature_maps, model(**moved).feature_maps
    for one, other in zip(maps, after):
        torch.testing.assert_close(other, one.roll((4, 4), dims=(-2, -1)), atol=1e-4, rtol=1e-4)


@every_backbone
def test_merging_equal_patches_changes_nothing(zoo):
    """Each patch stands four times in its window, whose tokens merge by pairs; sizes stand for what is gone."""
    model, inputs = without_positions(zoo), zoo.inputs(2)
    patches = inputs["pixel_values"][..., :16, :16].unflatten(-1, (4, 4)).unflatten(-3, (4, 4))
    twice = patches.repeat_interleave(2, dim=-4).repeat_interleave(2, dim=-2)  # (B, C, 8, 4, 8, 4)
    inputs["pixel_values"] = twice.flatten(-4, -3).flatten(-2)
    with torch.no_grad():
        plain = zoo.run(model, inputs=inputs)
        merged = zoo.run(apply(model, MergeConfig(r=4, layers=[0], proportional_attention=True)), inputs=inputs)
    torch.testing.assert_close(merged, plain, atol=1e-4, rtol=1e-4)


@every_backbone
def test_windows_reach_each_other(zoo):
    """A change in one window is seen in all others, behind a block that attends over all."""
    model, inputs = apply(zoo.make(), CONFIGS["tome"]), zoo.inputs(1)
    with torch.no_grad():
        before = model(**inputs).feature_maps[-1]
        inputs["pixel_values"][..., :16, :16] += 1
        after = model(**inputs).feature_maps[-1]
    assert (before - after)[..., 4:, 4:].abs().max() > 1e-4


@every_backbone
def test_the_report_counts_the_tokens_of_a_window(zoo):
    model = apply(zoo.make(), MergeConfig(r=4))
    with torch.no_grad():
        zoo.run(model)
    (tower,) = report(model).towers
    special = tower.num_prefix_tokens
    assert tower.tokens[0][0] == 16 + special
    assert tower.tokens[0][1] == 12 + special


@every_backbone
def test_gflops_are_those_that_run(zoo):
    """All matrix products and the patches' convolution; norms, which the report counts as well, are taken off."""
    model = zoo.make("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as plain:
        model(**zoo.inputs(1))
    apply(model, MergeConfig(r=4, layers=[0, 2]))
    assert report(model).towers[0].gflops is not None, "it follows from the config"
    with torch.no_grad(), FlopCounterMode(display=False) as merged:
        model(**zoo.inputs(1))
    (tower,) = report(model).towers
    full = [(tower.tokens[0][0],) * 2] * 4
    for gflops, tokens, counter in ((tower.gflops_unmerged, full, plain), (tower.gflops, tower.tokens, merged)):
        normed = sum(before + after for before, after in tokens) + tokens[-1][1]
        products = gflops * 1e9 - 4 * NORM_FLOPS * 32 * normed  # of 4 windows of width 32
        # ToMe counts the comparisons of its class token, which are left out here.
        assert products == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)


@every_backbone
def test_attended_tokens_may_be_protected(zoo):
    model = apply(zoo.make(), MergeConfig(r=4, protect_attended=0.5))
    with torch.no_grad():
        assert torch.isfinite(zoo.run(model)).all()

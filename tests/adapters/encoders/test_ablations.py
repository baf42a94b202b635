"""Every ablation of ToMe's tables 1 and 2 and of MaMe's figure 2 is reachable from the config, and does something."""

import pytest
import torch
import transformers as tf
from zoo import IMAGE, SMALL, ZOO

from hf_tome import MergeConfig, apply, report
from hf_tome.api import targets
from hf_tome.merging import MatchInputs, kmeans
from hf_tome.merging.base import COMBINE_MODES
from hf_tome.merging.method import HEAD_AGGREGATIONS, METRICS
from hf_tome.merging.methods import METHODS
from hf_tome.merging.partition import PARTITIONS
from hf_tome.merging.similarity import DISTANCES

VIT = next(zoo for zoo in ZOO if zoo.name == "vit")
ABLATIONS = {
    "metric": METRICS,
    "distance": tuple(DISTANCES),
    "head_aggregation": HEAD_AGGREGATIONS,
    "combine": COMBINE_MODES,
    "partition": PARTITIONS,
    "proportional_attention": (True, False),
}
MAME = {
    "metric": METRICS,
    "distance": tuple(DISTANCES),
    "partition": PARTITIONS,
    "adaptive_pruning": (True, False),
    "head_aggregation": HEAD_AGGREGATIONS,
}


def outputs(base: dict, name: str, values: tuple) -> list[torch.Tensor]:
    model, found = VIT.make(), []
    for value in values:
        apply(model, MergeConfig(**base, **{name: value}))
        with torch.no_grad():
            found.append(VIT.run(model))
        assert torch.isfinite(found[-1]).all()
    return found


def all_different(found: list[torch.Tensor]) -> bool:
    return not any(torch.equal(one, other) for i, one in enumerate(found) for other in found[:i])


@pytest.mark.parametrize("name", ABLATIONS)
def test_tome(name):
    base = {"r": 12}
    found = outputs(base, name, ABLATIONS[name])
    assert all_different(found)


@pytest.mark.parametrize("name", MAME)
def test_mame(name):
    # Keys of one head where heads are what differs; a threshold at which every similarity merges something.
    base = {"method": "mame", "threshold": 0.02, "layers": range(3)}
    if name == "head_aggregation":
        base["metric"] = "k"
    assert all_different(outputs(base, name, MAME[name]))


@pytest.mark.parametrize("method", ["random_prune", "kmeans"])
def test_seeds_choose_and_repeat(method):
    found = outputs({"method": method, "r": 12}, "seed", (0, 1, 2, 0))
    assert torch.equal(found[0], found[3])
    assert all_different(found[:3])


def test_random_partition_takes_a_seed():
    found = outputs({"r": 12, "partition": "random"}, "seed", (0, 1, 0))
    assert torch.equal(found[0], found[2])
    assert all_different(found[:2])


def test_kmeans_iterations_are_those_of_the_config():
    model = apply(VIT.make(), MergeConfig(method="kmeans", r=32, kmeans_iterations=5))
    metric = torch.randn(2, 65, 16, generator=torch.Generator().manual_seed(0))
    inputs = MatchInputs(metric, 50, num_prefix_tokens=1, fields=targets(model)[0].config.match_fields())
    once, often = (kmeans(metric, 50, 1, iterations=iterations).source for iterations in (1, 5))
    assert torch.equal(METHODS["kmeans"].match(inputs).source, often)
    assert not torch.equal(once, often)


def test_proportional_attention_auto_follows_method_and_model():
    expected = {"vit": True, "clip": True, "videomae": False, "vit_mae": False, "ast": False}
    for name, on in expected.items():
        model = next(zoo for zoo in ZOO if zoo.name == name).make()
        assert targets(apply(model, MergeConfig(r=4)))[0].plan.proportional is on, name
        assert targets(apply(model, MergeConfig(r=4, proportional_attention=not on)))[0].plan.proportional is not on, (
            name
        )
        assert targets(apply(model, MergeConfig(method="mame")))[0].plan.proportional is False, name


def test_mame_merges_in_the_first_two_thirds_by_default():
    config = tf.ViTConfig(**{**SMALL, "num_hidden_layers": 12}, **IMAGE)
    tower = targets(apply(tf.ViTModel(config), MergeConfig(method="mame")))[0]
    assert [layer for layer, merges in enumerate(tower.plan.merging) if merges] == list(range(8))


def test_a_ratio_follows_the_tokens_that_are_left():
    model = apply(VIT.make(), MergeConfig(ratio=0.25))
    planned = report(model).towers[0].tokens
    with torch.no_grad():
        VIT.run(model)
    tower = report(model).towers[0]
    assert tower.tokens[0] == (65, 49)  # a quarter of 64
    assert tower.tokens[1] == (49, 37)
    assert tower.tokens == planned
    assert tower.gflops < tower.gflops_unmerged
    with torch.no_grad():
        unmerged = VIT.run(VIT.make())
        assert torch.equal(VIT.run(apply(VIT.make(), MergeConfig(ratio=0.0))), unmerged)
    assert "merges half of its tokens at most" in str(report(apply(VIT.make(), MergeConfig(ratio=0.7))))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": 0.5, "tile": 8}, "`tile` is 8, but with `where='tower'` it means nothing"),
        ({"where": "denoiser", "ratio": 0.5}, "where='denoiser'"),
        ({"where": "cache", "keep_ratio": 0.5}, "does not generate text, so it keeps no keys"),
    ],
)
def test_another_place_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        apply(VIT.make(), MergeConfig(**fields))

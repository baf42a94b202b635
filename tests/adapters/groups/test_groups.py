"""`where="groups"`: whole groups of patches merge in packed towers, and each that is left is one token behind them."""

import copy
import pickle

import pytest
import torch
import transformers as tf
from reversible import check_checkpointed_gradients, check_reversible
from segment_zoo import GRIDS, PACKED_ZOO
from torch.utils.flop_counter import FlopCounterMode

from hf_tome import MergeConfig, UnsupportedModelError, apply, report, trace
from hf_tome.adapters.dense.packed.rows import GROUPED_TOWERS, PACKED_TOWERS
from hf_tome.api import targets
from hf_tome.patching.patch import is_patched
from hf_tome.profiling.benchmark import benchmark
from hf_tome.profiling.slice_oracle import make_oracle

CONFIGS = {
    "tome": MergeConfig(r=2, where="groups"),
    "tome-exhausted": MergeConfig(r=100, where="groups"),
    "ratio": MergeConfig(ratio=0.4, layers=[0, 2], where="groups"),
    "mame": MergeConfig(method="mame", threshold=0.0, layers=range(3), where="groups"),
    "kmeans": MergeConfig(method="kmeans", r=2, where="groups"),
    "attended": MergeConfig(r=2, protect_attended=0.5, where="groups"),
    "keep-norm": MergeConfig(r=2, combine="keep_norm", where="groups"),
}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
GROUPED = [zoo for zoo in PACKED_ZOO if zoo.tower in GROUPED_TOWERS]
UNGROUPED = [zoo for zoo in PACKED_ZOO if PACKED_TOWERS[zoo.tower].no_groups is not None]
BY_NAME = {zoo.module: zoo for zoo in PACKED_ZOO}

every_tower = pytest.mark.parametrize("zoo", GROUPED, ids=lambda zoo: zoo.module)
every_pair = pytest.mark.parametrize(
    ("zoo", "config"),
    [
        pytest.param(
            zoo,
            config,
            id=f"{zoo.module}-{name}",
            marks=() if column == row % len(CONFIGS) else pytest.mark.slow,
        )
        for row, zoo in enumerate(GROUPED)
        for column, (name, config) in enumerate(CONFIGS.items())
    ],
)
designs = pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "glm4v", "cosmos3_edge"])


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def groups_left(model):
    """Return the groups of each image into the first block and out of the last one, as the report has them."""
    (tower,) = report(model).towers
    return tower.tokens[0][0] / tower.group_size, tower.tokens_out / tower.group_size


# ------------------------------------------------------------------------------------------------ the tower by itself


@every_tower
def test_r0_is_bit_identical_and_remove_is_exact(zoo):
    check_reversible(zoo.make(), zoo.run, MergeConfig(r=2, where="groups"), atol=1e-3)
    model = zoo.make()
    assert torch.equal(zoo.run(model), zoo.run(apply(model, MergeConfig(where="groups"))))


@every_pair
def test_images_of_a_batch_are_as_if_alone(zoo, config):
    model, images = apply(zoo.make(), config), zoo.inputs()
    together = zoo.run(model, images)
    before, after = groups_left(model)
    assert after < before == pytest.approx(sum(rows * columns for _, rows, columns in GRIDS) / len(GRIDS) / 4)
    torch.testing.assert_close(together, torch.cat([zoo.run(model, [image]) for image in images]), **CLOSE)
    (target,) = targets(model)
    assert target.recorder.current() is None
    assert target.recorder.result() is None


@every_pair
def test_what_stands_behind_the_blocks_takes_groups_as_it_takes_all_patches(zoo, config):
    """Norms, convolutions and mergers work group by group: restoring before them or behind them gives the same."""
    model = apply(zoo.make(), config)
    (target,) = targets(model)
    with target.recorder.reader():
        kept = zoo.run(model)
        left = target.recorder.result().kept_outputs()
    restored = zoo.run(apply(model, MergeConfig.from_dict({**config.to_dict(), "restore": True})))
    width = kept.shape[1] if "deepstack_visual_indexes" not in zoo.options else kept.shape[1] // 3
    assert len(left) < len(kept)
    torch.testing.assert_close(kept[left, :width], restored[left, :width], **CLOSE)


@designs
def test_r_counts_groups(name):
    zoo = BY_NAME[name]
    model = apply(zoo.make(), MergeConfig(r=3, layers=[1], where="groups", trace=True))
    zoo.run(model, zoo.inputs([[1, 8, 8]]))
    assert groups_left(model) == (16, 13)
    went = trace(model)
    assert went.source.shape == (1, 16)
    assert went.size.sum() == 16
    model = apply(model, MergeConfig(r=100, layers=[1], where="groups"))
    zoo.run(model, zoo.inputs([[1, 8, 8]]))
    assert "fewer than the r=100 asked for can merge: 8 of 16 groups did" in str(report(model))


def test_what_is_read_between_the_blocks_is_the_mean_of_those_that_merge_later():
    zoo = BY_NAME["qwen3_vl"]  # deepstack mergers read behind blocks 0 and 2
    model, images = zoo.make(), zoo.inputs()
    plain = model(torch.cat([rows for rows, _ in images]), torch.tensor([grid for _, grid in images]))
    apply(model, MergeConfig(r=3, layers=[3], where="groups", trace=True))
    merged = model(torch.cat([rows for rows, _ in images]), torch.tensor([grid for _, grid in images]))
    went, counts = trace(model), [rows * columns // 4 for _, rows, columns in GRIDS]
    for before, after in zip(plain.deepstack_features, merged.deepstack_features):
        for rows, found, source in zip(before.split(counts), after.split(counts), went.source):
            source = source[source >= 0]
            for holder in source.unique():
                members = source == holder
                mean = rows[members].mean(dim=0)
                torch.testing.assert_close(found[members], mean.expand_as(found[members]), **CLOSE)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm_ocr", "qwen2_5_vl"])
def test_merging_equal_groups_changes_nothing(name):
    zoo = BY_NAME[name]
    model = zoo.make()
    for tensor_name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "pos_embed" in tensor_name or "inv_freq" in tensor_name:
            tensor.zero_()
    images = [(patches[:4].repeat(len(patches) // 4, 1), grid) for patches, grid in zoo.inputs([[1, 8, 8], [1, 8, 4]])]
    plain = zoo.run(model, images)
    merged = zoo.run(apply(model, MergeConfig(method="greedy", r=2, where="groups")), images)
    before, after = groups_left(model)
    assert after < before - 2
    torch.testing.assert_close(merged, plain, atol=1e-3, rtol=1e-3)


def test_windows_stay_apart():
    zoo = BY_NAME["qwen2_5_vl"]
    model = apply(zoo.make(), MergeConfig(r=4, layers=[1], where="groups", trace=True))
    zoo.run(model, zoo.inputs([[1, 8, 8]]))
    holders = [set(part.tolist()) for part in trace(model).source[0].split(4)]  # four windows of 2 x 2 groups
    assert [len(rows) for rows in holders] == [3] * 4
    assert sum(map(len, holders)) == len(set().union(*holders))


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "glm_ocr"])
def test_gflops_are_those_that_run(name):
    zoo = BY_NAME[name]
    model, images = zoo.make("eager"), zoo.inputs([[1, 8, 8], [1, 4, 6]])
    with FlopCounterMode(display=False) as plain:
        zoo.run(model, images)
    apply(model, MergeConfig(r=2, where="groups"))
    with FlopCounterMode(display=False) as counted:
        zoo.run(model, images)
    (tower,) = report(model).towers
    for reported, flops in ((tower.gflops_unmerged, plain), (tower.gflops, counted)):
        assert 2 * reported == pytest.approx(flops.get_total_flops() / 2e9, rel=1e-3)  # of two images


def test_checkpointed_gradients_equal_plain_ones():
    zoo = BY_NAME["qwen3_vl"]
    check_checkpointed_gradients(zoo.make, zoo.run, CONFIGS["tome"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_compiles(name):
    zoo = BY_NAME[name]
    model, images = apply(zoo.make(), CONFIGS["tome"]), zoo.inputs([[1, 8, 8], [1, 4, 4]])
    torch._dynamo.reset()
    eager = zoo.run(model, images)
    torch.testing.assert_close(zoo.run(torch.compile(model, backend="eager"), images), eager, **CLOSE)
    assert report(model).towers[0].measured


def test_copies_and_pickles():
    zoo = BY_NAME["qwen2_5_vl"]
    model = apply(zoo.make(), CONFIGS["tome"])
    expected = zoo.run(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(zoo.run(twin), expected)


def test_the_benchmark_cuts_whole_groups_for_the_oracle():
    zoo = BY_NAME["qwen3_vl"]
    ((patches, grid),) = zoo.inputs([[1, 8, 8]])
    inputs = {"hidden_states": patches, "grid_thw": torch.tensor([grid])}
    result = benchmark(zoo.make(), inputs, CONFIGS["tome"], rounds=2, warmup=1, memory=False)
    assert result.tokens == (64, 32)
    assert result.gflops < result.gflops_unmerged
    for restore in (False, True):  # what is restored is restored in the oracle, too
        oracle = make_oracle(zoo.make(), [[64, 56, 48, 40, 32]], "groups", restore=restore)
        assert report(oracle).towers[0].group_size == 4
        assert targets(oracle)[0].describe().unmerged is restore


# ------------------------------------------------------------------------------------------------ what is unsupported


@pytest.mark.parametrize("zoo", UNGROUPED, ids=lambda zoo: zoo.module)
def test_towers_whose_groups_do_not_stay_together_say_why(zoo):
    model = zoo.make()
    reason = PACKED_TOWERS[zoo.tower].no_groups.split("(")[0]
    with pytest.raises(UnsupportedModelError, match=rf"whole groups.*{reason}.*Supported: Qwen2Vision.*where='tower'"):
        apply(model, CONFIGS["tome"])
    assert not any(is_patched(module) for module in model.modules())


def test_other_models_are_told_where_groups_merge():
    sides = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = tf.ViTModel(tf.ViTConfig(**sides, image_size=32, patch_size=4))
    with pytest.raises(
        UnsupportedModelError, match=r"pack the patches of all images.*none in a ViTModel.*Supported: Qwen2"
    ):
        apply(model, CONFIGS["tome"])


@pytest.mark.parametrize("method", ["random_prune", "attention_prune"])
def test_pruning_is_unsupported(method):
    with pytest.raises(UnsupportedModelError, match="drops tokens"):
        apply(BY_NAME["qwen3_vl"].make(), MergeConfig(method=method, r=2, where="groups"))


def test_the_config_takes_what_blocks_take():
    config = MergeConfig(r=[2, 1], metric="x", restore=True, towers="visual", where="groups")
    assert MergeConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"`exact_last_block` is False, but with `where='groups'` whole groups"):
        MergeConfig(r=2, exact_last_block=False, where="groups")

"""What must hold for every dense model: parametrised over the tables, so that a row brings its tests."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers as tf
from dense_zoo import DENSE_ZOO, UPERNET_HEAD, Maps
from installed import checkpoint_activations
from reversible import check_reversible

from hf_tome import MergeConfig, UnsupportedModelError, apply, from_pretrained, remove, report, save_pretrained
from hf_tome.adapters.dense.models import DENSE_MODELS
from hf_tome.adapters.dense.towers import DENSE_TOWERS
from hf_tome.api import targets
from hf_tome.patching.patch import is_patched
from hf_tome.profiling.example_inputs import example_inputs

CONFIGS = {
    "tome": MergeConfig(r=6),
    "tome-exhausted": MergeConfig(r=100),
    "mame": MergeConfig(method="mame", threshold=0.3, layers=range(3)),
    "mame-fixed": MergeConfig(method="mame", keep_ratio=0.6, layers=[0, 2]),
    "kmeans": MergeConfig(method="kmeans", r=6),
    "greedy": MergeConfig(method="greedy", r=6),
}
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}
BY_NAME = {zoo.name: zoo for zoo in DENSE_ZOO}

every_model = pytest.mark.parametrize("zoo", DENSE_ZOO, ids=BY_NAME.keys())


def every_config(*names):
    chosen = {name: CONFIGS[name] for name in names or CONFIGS}
    parametrize = pytest.mark.parametrize("config", chosen.values(), ids=chosen.keys())
    return lambda test: pytest.mark.product(parametrize(test))


def test_every_row_has_a_model():
    classes = {type(module).__name__ for zoo in DENSE_ZOO for module in zoo.build("sdpa").modules()}
    assert set(DENSE_TOWERS) - {"WhisperEncoder"} <= classes  # (see test_whisper.py)
    reading = {name for name, rows in DENSE_MODELS.items() if rows}
    assert reading <= classes


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@every_model
def test_r0_is_bit_identical_and_remove_is_exact(zoo, backend):
    check_reversible(zoo.make(backend), zoo.run, MergeConfig(r=6), atol=1e-4)


@every_config()
@every_model
def test_shapes_stay_and_tokens_go(zoo, config):
    model = zoo.make()
    with torch.no_grad():
        plain = zoo.run(model)
        apply(model, config)
        merged = zoo.run(model)
    assert merged.shape == plain.shape
    assert torch.isfinite(merged).all()
    for tower in report(model).towers:
        assert tower.computed[-1][1] < tower.computed[0][0]
    for target in targets(model):
        assert target.recorder.current() is None
        assert target.recorder.result() is None, "tensors of a pass that nobody reads any more"


@every_config()
@every_model
def test_eager_agrees_with_sdpa(zoo, config):
    with torch.no_grad():
        sdpa, eager = (zoo.run(apply(zoo.make(backend), config)) for backend in ("sdpa", "eager"))
    torch.testing.assert_close(sdpa, eager, atol=1e-3, rtol=1e-3)  # heads without norms enlarge what differs


@every_config()
@every_model
def test_results_do_not_depend_on_the_batch(zoo, config):
    model, inputs = apply(zoo.make(), config), zoo.inputs(2)
    with torch.no_grad():
        together = zoo.run(model, inputs=inputs)
        for row in range(2):
            # OWL-ViT has several sentences a picture.
            one = {name: value.chunk(2)[row] for name, value in inputs.items()}
            torch.testing.assert_close(zoo.run(model, inputs=one)[0], together[row], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["random_prune", "attention_prune"])
@pytest.mark.parametrize(
    "zoo", [BY_NAME[name] for name in ("dinov2", "clipseg", "depth_pro", "owlvit", "dpt")], ids=lambda zoo: zoo.name
)
def test_pruning_is_unsupported(zoo, name):
    model = zoo.make()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(
        UnsupportedModelError, match=r"needs every token (in each hidden state that it reads|after the last block)"
    ):
        apply(model, MergeConfig(method=name, r=6))
    assert [type(module) for module in model.modules()] == classes


# --- what is read is in its place ---------------------------------------------------------------------------------


def without_positions(zoo):
    """Return a model that knows no positions, so that equal patches stay equal."""
    model = zoo.make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position" in name:
                parameter.zero_()
    return model


# Rotary positions are no weights that could be set to zero; Depth Pro cuts its picture up, and resizes the pieces;
# ViTPose's patches overlap; VideoMT takes clips.
NOT_PLACED = ("dinov3", "chmv2", "eomt_dinov3", "videomt", "sapiens2", "sapiens2-backbone", "depth_pro", "vitpose")
WINDOWS = ("rf_detr_dinov2", "lw_detr_vit", "rf_detr", "lw_detr")  # have tests of their own (see test_windows.py)
PLACED = [zoo for zoo in DENSE_ZOO if zoo.name not in (*NOT_PLACED, *WINDOWS)]
MAPS = [zoo for zoo in PLACED if isinstance(zoo, Maps)]
# Methods that halve the tokens do it by their order, which a merge changes: one merge of these, several of the others.
ORDERLESS = {
    "greedy": MergeConfig(method="greedy", r=6),
    "tome": MergeConfig(r=8, layers=[1]),
    "mame": MergeConfig(method="mame", threshold=0.3, layers=[1]),
    "mame-fixed": MergeConfig(method="mame", keep_ratio=0.6, layers=[1]),
}


@pytest.mark.parametrize("config", [ORDERLESS["greedy"], ORDERLESS["tome"]], ids=["greedy", "tome"])
@pytest.mark.parametrize("zoo", PLACED, ids=lambda zoo: zoo.name)
def test_merging_equal_patches_changes_nothing(zoo, config):
    # Each patch stands four times in the picture. Tokens of equal patches merge, and proportional attention takes the
    # merged one for all of them (ToMe, section 3), so what is read can only differ where it is not in its place.
    model, inputs = without_positions(zoo), zoo.inputs(2)
    patches = inputs["pixel_values"][..., :16, :16].unflatten(-1, (4, 4)).unflatten(-3, (4, 4))
    twice = patches.repeat_interleave(2, dim=-4).repeat_interleave(2, dim=-2)  # (B, C, 8, 4, 8, 4)
    inputs["pixel_values"] = twice.flatten(-4, -3).flatten(-2)
    config = replace(config, proportional_attention=True)
    with torch.no_grad():
        plain = zoo.run(model, inputs=inputs)
        merged = zoo.run(apply(model, config), inputs=inputs)
    tokens = targets(model)[0].recorder.summary.tokens
    assert tokens[-1] < tokens[0]
    torch.testing.assert_close(merged, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("config", ORDERLESS.values(), ids=ORDERLESS.keys())
@pytest.mark.parametrize("zoo", MAPS, ids=lambda zoo: zoo.name)
def test_maps_move_with_the_patches(zoo, config):
    # Two columns on, so that each patch stays in its half of the partition.
    model = apply(without_positions(zoo), config)
    inputs = zoo.inputs(2)
    moved = {"pixel_values": inputs["pixel_values"].roll(8, dims=-1)}
    with torch.no_grad():
        maps, after = model(**inputs).feature_maps, model(**moved).feature_maps
    for one, other in zip(maps, after):
        torch.testing.assert_close(other, one.roll(2, dims=-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["tome", "mame", "kmeans"])
def test_each_read_equals_unmerging_block_by_block(name):
    zoo = BY_NAME["dinov2"]
    model = apply(zoo.make(), replace(CONFIGS[name], trace=True))
    seen = []
    hooks = [layer.register_forward_hook(lambda *call: seen.append(call[-1])) for layer in model.encoder.layer]
    with torch.no_grad():
        out = model(**zoo.inputs(2), output_hidden_states=True)
    matches = targets(model)[0].recorder.summary.state.match
    for index, tokens in enumerate(seen):
        for match in reversed([match for match in matches[: index + 1] if match is not None]):
            tokens = match.unmerge(tokens)
        assert torch.equal(out.hidden_states[index + 1], tokens)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("config", [CONFIGS["tome"], CONFIGS["mame"]], ids=["tome", "mame"])
def test_all_features_equal_single_ones(config):
    # What is unmerged for one read does not depend on the others, nor on when `out_features` are set.
    zoo = BY_NAME["dinov2"]
    model = apply(zoo.make(), config)
    with torch.no_grad():
        together = model(**zoo.inputs(2)).feature_maps
        for index, one in enumerate(together):
            model.out_indices = [index + 1]
            torch.testing.assert_close(model(**zoo.inputs(2)).feature_maps[0], one, **ROUNDING)


def test_hidden_states_that_are_not_read_stay_merged():
    zoo = BY_NAME["dinov3"]
    model = apply(zoo.make(), MergeConfig(r=6))
    with torch.no_grad():
        out = model(**zoo.inputs(2), output_hidden_states=True)
    assert [x.shape[1] for x in out.hidden_states] == [68, 68, 56, 68, 68]
    assert out.last_hidden_state.shape[1] == 68


# --- pictures of other sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "beit", "clipseg", "depth_anything", "upernet"])
def test_odd_sizes(name):
    zoo = BY_NAME[name]
    model, inputs = zoo.make(), zoo.inputs(2)
    inputs["pixel_values"] = torch.nn.functional.interpolate(inputs["pixel_values"], (24, 40))
    if name == "clipseg":
        inputs["pixel_values"] = inputs["pixel_values"][..., :24, :24]  # its decoder takes squares
    with torch.no_grad():
        plain = zoo.run(model, inputs=inputs)
        assert torch.equal(zoo.run(apply(model, MergeConfig(r=0)), inputs=inputs), plain)
        merged = zoo.run(apply(model, MergeConfig(r=6)), inputs=inputs)
    assert merged.shape == plain.shape
    assert not torch.allclose(merged, plain, atol=1e-4)


# --- around a model ----------------------------------------------------------------------------------------------


@every_config("tome", "mame-fixed")
@every_model
def test_saves_loads_and_copies(zoo, config, tmp_path):
    model = apply(zoo.make(), config)
    with torch.no_grad():
        twin = copy.deepcopy(model)  # (transformers' own hooks keep backbones from being pickled)
        assert torch.equal(zoo.run(twin), zoo.run(model))
        assert not any(is_patched(module) for module in remove(twin).modules())
        save_pretrained(model, tmp_path)
        # What transformers loads of a Pixio backbone has lost one of its two norms, with and without merging.
        plain = type(remove(model)).from_pretrained(tmp_path).eval()
        loaded = from_pretrained(tmp_path, auto_class=type(model)).eval()
        assert torch.equal(zoo.run(loaded), zoo.run(apply(plain, config)))


@pytest.mark.parametrize("name", ["dinov2", "beit", "dinov3"])
def test_checkpointed_gradients_equal_plain_ones(name):
    gradients = []
    for checkpointing in (None, {"use_reentrant": False}):
        model = apply(BY_NAME[name].make(), MergeConfig(r=6)).train()
        if checkpointing is not None:
            checkpoint_activations(model, **checkpointing)
        BY_NAME[name].run(model).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, atol=1e-6 + 1e-5 * one.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize(("name", "config"), [("dinov2", "tome"), ("dinov3", "mame-fixed")])
def test_compiles_without_a_graph_break(name, config):
    zoo = BY_NAME[name]
    model = apply(zoo.make(), CONFIGS[config])
    torch._dynamo.reset()
    with torch.no_grad():
        eager = zoo.run(model)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(zoo.run(compiled), eager, **ROUNDING)


# --- bad input ---------------------------------------------------------------------------------------------------


def test_a_backbone_without_a_row():
    inner = tf.ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 8], num_stages=2, out_indices=[1, 2])
    model = tf.UperNetForSemanticSegmentation(tf.UperNetConfig(backbone_config=inner, **UPERNET_HEAD))
    with pytest.raises(UnsupportedModelError, match="around a tower of type 'convnext': it is made of convolutions"):
        apply(model, MergeConfig(r=6))


def test_experts_are_unsupported():
    model = BY_NAME["vitpose"].make()
    inner = model.config.backbone_config
    inner.num_experts, inner.part_features = 2, 8
    with pytest.raises(UnsupportedModelError, match="an expert for each picture"):
        apply(tf.VitPoseForPoseEstimation(model.config), MergeConfig(r=6))


def test_merging_behind_the_last_read():
    zoo = BY_NAME["dinov2"]
    model = zoo.make()
    model.out_indices = [1]
    with pytest.raises(ValueError, match=r"before block 1 \(`out_features`\)"):
        apply(model, MergeConfig(r=6, layers=[2]))
    assert not any(is_patched(module) for module in model.modules())


def test_a_part_of_a_merged_model_builds_plain_from_its_config():
    """`type(module)(config)` is how transformers builds a model to load into; a part may be patched as a model is."""
    merged = apply(BY_NAME["beit"].build("sdpa"), MergeConfig(r=2))
    built = type(merged.beit)(merged.config)
    assert is_patched(merged.beit)
    assert not is_patched(built)
    assert built.embeddings.patch_embeddings.projection.weight.shape == (32, 3, 4, 4)


@pytest.mark.parametrize("name", ["dinov2", "upernet", "dpt", "sapiens2", "vitpose", "lw_detr", "rf_detr_dinov2"])
def test_example_inputs_fit(name):
    model = apply(BY_NAME[name].make(), MergeConfig(r=2))
    inputs = example_inputs(model)
    if name == "vitpose":
        inputs["dataset_index"] = torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        model(**inputs)
    assert report(model).towers[0].measured

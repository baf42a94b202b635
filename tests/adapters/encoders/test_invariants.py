"""What must hold for every family and every method: parametrised over the tables, so that a row brings its tests."""

import copy
import io
import pickle

import pytest
import torch
from installed import TORCH, checkpoint_activations
from packaging.version import Version
from zoo import ZOO, Zoo

from hf_tome import (
    MergeConfig,
    UnsupportedModelError,
    apply,
    from_pretrained,
    remove,
    report,
    save_pretrained,
    trace,
)
from hf_tome.adapters.encoders.families.registry import TOWERS
from hf_tome.api import targets
from hf_tome.merging.methods import METHODS
from hf_tome.patching.patch import CONTEXT, is_patched, mixin_of

CONFIGS = {
    "tome": MergeConfig(r=6),
    "tome-falling": MergeConfig(r=(6, -1.0)),
    "tome-exhausted": MergeConfig(r=100),
    "mame": MergeConfig(method="mame", threshold=0.3, layers=range(3)),
    "mame-union": MergeConfig(method="mame", threshold=0.2, layers=range(3), batching="union"),
    "mame-fixed": MergeConfig(method="mame", keep_ratio=0.6, layers=[0, 2]),
    "random_prune": MergeConfig(method="random_prune", r=6),
    "attention_prune": MergeConfig(method="attention_prune", r=6),
    "kmeans": MergeConfig(method="kmeans", r=6),
    "greedy": MergeConfig(method="greedy", r=6),
}
PLANNED = {name: config for name, config in CONFIGS.items() if name not in ("mame", "mame-union")}
MERGING = {name: config for name, config in CONFIGS.items() if "prune" not in name}
ALONE = {name: config for name, config in CONFIGS.items() if name != "mame-union"}

MIXED_BEFORE_POOLING = (
    "ijepa",
    "dinov2",
    "dinov2-registers",
    "siglip",
    "siglip-classifier",
    "siglip2",
    "aimv2",
    "kosmos-2",
)

# Sums in another order: a few ulp of activations of size 1 to 10, through three blocks.
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}

every_model = pytest.mark.parametrize("zoo", ZOO, ids=lambda zoo: zoo.name)


def every_config(configs):
    parametrize = pytest.mark.parametrize("config", configs.values(), ids=configs.keys())
    return lambda test: pytest.mark.product(parametrize(test))


def traced(config: MergeConfig) -> MergeConfig:
    return MergeConfig.from_dict({**config.to_dict(), "trace": True})


def merged(zoo: Zoo, config: MergeConfig, backend: str = "sdpa"):
    """Return the zoo's model with merging, or skip where the pair is refused with a reason."""
    model = zoo.make(backend)
    if METHODS[config.method].drops_tokens and zoo.restores:
        with pytest.raises(UnsupportedModelError, match="drops tokens for good"):
            apply(model, config)
        pytest.skip("refused: a head that needs every token, and a method that drops some")
    if config.method == "kmeans" and "siglip2" in zoo.name:
        pytest.skip("refused: k-means takes no padded input (tested in test_merging)")
    return apply(model, config)


def test_every_row_has_models():
    assert {zoo.tower for zoo in ZOO} == set(TOWERS)
    assert {config.method for config in CONFIGS.values()} == {
        name for name, row in METHODS.items() if row.places is None
    }


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@every_model
def test_r0_is_bit_identical_and_remove_is_exact(zoo, backend):
    model = zoo.make(backend)
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    with torch.no_grad():
        # Alone too: an image's memory layout is another one then, and with it the order of sums.
        alone = zoo.run(model, batch_size=1)
        plain = zoo.run(model)
        apply(model, MergeConfig(r=0))
        assert torch.equal(zoo.run(model), plain)
        assert torch.equal(zoo.run(model, batch_size=1), alone)
        assert "nothing merges" in str(report(model))
        apply(model, MergeConfig(method="mame", layers=[]))
        assert torch.equal(zoo.run(model), plain)
        apply(model, MergeConfig(r=6))
        changed = zoo.run(model)
        assert changed.shape != plain.shape or not torch.allclose(changed, plain, atol=1e-4)
        assert list(model.state_dict()) == keys
        remove(model)
        assert torch.equal(zoo.run(model), plain)
    assert [type(module) for module in model.modules()] == classes
    assert not any(CONTEXT in module.__dict__ for module in model.modules())


@every_config(PLANNED)
@every_model
def test_lengths_follow_the_plan(zoo, config):
    model = merged(zoo, config)
    planned = report(model).towers[0].tokens
    with torch.no_grad():
        zoo.run(model)
    assert report(model).towers[0].computed == planned
    assert planned[-1][1] < planned[0][0]


@every_config(CONFIGS)
@every_model
def test_sizes_and_protected_tokens(zoo, config):
    model = merged(zoo, traced(config))
    with torch.no_grad():
        zoo.run(model)
    tower, found = targets(model)[0], trace(model)
    num_input, special = tower.recorder.summary.tokens[0], tower.plan.num_prefix_tokens
    start = tower.recorder.summary.state.size[0]
    real = start[..., 0].sum(dim=1) if start is not None else torch.full((found.size.shape[0],), float(num_input))
    if config.method not in ("random_prune", "attention_prune"):
        torch.testing.assert_close(found.size.sum(dim=(1, 2)), real, atol=1e-3, rtol=0)
    held = torch.zeros_like(found.size[..., 0]).scatter_add(
        1, found.source.clamp(min=0), (found.source >= 0).float() * (start[..., 0] if start is not None else 1)
    )
    assert (held[found.size[..., 0] > 0] > 0).all(), "a final token that holds no input token"
    assert torch.equal(found.source[:, :special], torch.arange(special).expand(found.source.shape[0], -1))
    assert (found.size[:, :special] == 1).all()


@every_config({name: CONFIGS[name] for name in ("tome", "mame", "mame-fixed", "greedy")})
@every_model
def test_heads_agree_with_the_restored_grid(zoo, config):
    # Merged tokens pooled by size, and all tokens unmerged and pooled as without merging, are two ways to one result.
    if zoo.by_tokens or zoo.restores:
        pytest.skip("its output is not pooled by size")
    with torch.no_grad():
        direct = zoo.run(merged(zoo, config))
        restored = zoo.run(merged(zoo, MergeConfig.from_dict({**config.to_dict(), "restore": True})))
    if config is CONFIGS["mame"] and zoo.name in MIXED_BEFORE_POOLING:
        pytest.skip(
            "MaMe restores shared sources as mixtures, and a norm or softmax before pooling is not linear in them"
        )
    torch.testing.assert_close(direct, restored, **ROUNDING)


@every_config(CONFIGS)
@every_model
def test_eager_agrees_with_sdpa(zoo, config):
    with torch.no_grad():
        sdpa, eager = (zoo.run(merged(zoo, config, backend)) for backend in ("sdpa", "eager"))
    torch.testing.assert_close(sdpa, eager, atol=1e-4, rtol=1e-4)  # the unmerged models differ by as much


@every_config(ALONE)
@every_model
def test_results_do_not_depend_on_the_batch(zoo, config):
    model = merged(zoo, traced(config))
    inputs = zoo.inputs(2)
    with torch.no_grad():
        together = zoo.run(model, inputs=inputs)
        sizes = targets(model)[0].recorder.summary.state.size[-1]
        for row in range(2):
            # A text tower's sentences stay; they are not the batch of images. (Prompts that hold images are.)
            stays = "input_ids" if "image_embeds_position_mask" not in inputs else None
            one = {name: value if name == stays else value[row : row + 1] for name, value in inputs.items()}
            alone = zoo.run(model, inputs=one)[0]
            expected = together[row]
            if zoo.by_tokens:
                real = sizes[row, :, 0] > 0
                expected = expected[real]
            torch.testing.assert_close(alone, expected, **ROUNDING)


@every_model
def test_padding_does_not_matter(zoo):
    if "siglip2" not in zoo.name:
        pytest.skip("takes no padded input")
    inputs = zoo.inputs(2)
    longer = {**inputs, "pixel_values": torch.nn.functional.pad(inputs["pixel_values"], (0, 0, 0, 16), value=3.0)}
    longer["pixel_attention_mask"] = torch.nn.functional.pad(inputs["pixel_attention_mask"], (0, 16))
    for config in (CONFIGS["tome"], CONFIGS["mame"], CONFIGS["attention_prune"]):
        model = merged(zoo, config)
        with torch.no_grad():
            torch.testing.assert_close(zoo.run(model, inputs=inputs), zoo.run(model, inputs=longer), **ROUNDING)


@every_config({name: CONFIGS[name] for name in ("tome", "mame", "mame-fixed", "random_prune")})
@every_model
def test_checkpointed_gradients_equal_plain_ones(zoo, config):
    gradients = []
    modes = [None, {"use_reentrant": False}, {"use_reentrant": True}]
    if zoo.name == "beit-shared":
        # Its bias comes from outside the blocks, on which reentrant checkpointing fails without merging as well.
        modes.pop()
    for checkpointing in modes:
        model = merged(zoo, config).train()
        if checkpointing is not None:
            checkpoint_activations(model, **checkpointing)
        torch.manual_seed(3)  # drop path
        zoo.run(model).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    plain = gradients[0]
    assert plain
    assert all(torch.isfinite(grad).all() for grad in plain)
    for checkpointed in gradients[1:]:
        assert len(checkpointed) == len(plain)
        for one, other in zip(plain, checkpointed):
            # Sums over tokens and images in another order; what cancels is small beside the whole gradient.
            torch.testing.assert_close(one, other, atol=1e-6 + 1e-5 * one.abs().max().item(), rtol=1e-4)


# Compiling takes seconds: each family with one method, and one of each kind of block and head with a second.
# SigLIP 2's embedding resizes positions image by image, which breaks graphs without merging too.
COMPILED = [(zoo, "tome") for zoo in ZOO if "siglip2" not in zoo.name] + [
    (zoo, "mame-fixed") for zoo in ZOO if zoo.name in ("vit", "dinov3", "beit", "siglip", "videomae")
]
QUICKLY_COMPILED = (
    *("vit", "vit_mae", "dinov3", "clip", "internvl", "ijepa", "beit", "data2vec-vision", "data2vec-vision-shared"),
    *("siglip", "siglip-classifier", "aimv2", "kosmos-2", "videomae"),
)
"""Compiled by `make test` too: one family at least for each set of patched classes."""


def compiled_cases():
    for zoo, name in COMPILED:
        marks = () if zoo.name in QUICKLY_COMPILED else pytest.mark.slow
        yield pytest.param(zoo, name, marks=marks, id=f"{zoo.name}-{name}")


def test_every_set_of_patched_classes_is_compiled():
    patched = {}
    for zoo in {zoo.name: zoo for zoo, _ in COMPILED}.values():
        classes = {mixin_of(module) for module in merged(zoo, MergeConfig(r=6)).modules()}
        patched.setdefault(frozenset(classes), set()).add(zoo.name)
    assert all(names & set(QUICKLY_COMPILED) for names in patched.values()), patched


@pytest.mark.parametrize(("zoo", "name"), compiled_cases())
def test_compiles_without_a_graph_break(zoo, name):
    if zoo.name == "kosmos-2" and Version("2.9") > TORCH:
        pytest.skip("transformers makes its cache within the graph, which older dynamos do not trace")
    model = merged(zoo, CONFIGS[name])
    torch._dynamo.reset()
    with torch.no_grad():
        eager = zoo.run(model)
        compiled = zoo.run(torch.compile(model, backend="eager", fullgraph=True))
    torch.testing.assert_close(compiled, eager, **ROUNDING)


@every_model
def test_saves_loads_pickles_and_copies(zoo, tmp_path):
    config = MergeConfig(r=6)
    model = merged(zoo, config)
    architectures = [type(model).__name__]
    buffer = io.BytesIO()
    with torch.no_grad():
        expected = zoo.run(model)
        torch.save(model, buffer)
        buffer.seek(0)
        twins = {
            "deepcopy": copy.deepcopy(model),
            "pickle": pickle.loads(pickle.dumps(model)),
            "torch.save": torch.load(buffer, weights_only=False),
        }
        for name, twin in twins.items():
            assert torch.equal(zoo.run(twin), expected), name
            assert targets(twin)[0] is not targets(model)[0], name
            assert not any(is_patched(module) for module in remove(twin).modules()), name
        save_pretrained(model, tmp_path)
        loaded = from_pretrained(tmp_path, auto_class=type(model), attn_implementation="sdpa").eval()
        assert torch.equal(zoo.run(loaded), expected)
    assert loaded.config.architectures == architectures
    assert targets(loaded)[0].config == config


@every_config({name: CONFIGS[name] for name in ("tome", "mame")})
@every_model
def test_apply_twice_is_apply_once(zoo, config):
    model = merged(zoo, config)
    with torch.no_grad():
        once = zoo.run(model)
        apply(apply(model, MergeConfig(r=3)), config)
        assert torch.equal(zoo.run(model), once)
    remove(model)
    assert not any(is_patched(module) for module in model.modules())


@every_config(MERGING)
@every_model
def test_restore_gives_the_full_grid(zoo, config):
    if not zoo.by_tokens:
        pytest.skip("its output has no tokens")
    model = merged(zoo, MergeConfig.from_dict({**config.to_dict(), "restore": True}))
    with torch.no_grad():
        shape = zoo.run(remove(copy.deepcopy(model))).shape
        assert zoo.run(model).shape == shape

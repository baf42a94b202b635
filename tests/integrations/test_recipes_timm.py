"""timm's VisionTransformer, by itself and in transformers' wrappers. Skipped where timm cannot be imported."""

import copy
import pickle

import pytest
import torch
import transformers as tf
from PIL import Image

import hf_tome
from hf_tome import MergeConfig, UnsupportedModelError

try:
    import timm
except (ImportError, RuntimeError) as error:  # timm needs torchvision, and that a build for this very torch
    pytest.skip(f"timm cannot be imported here: {error}", allow_module_level=True)

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}  # 64 patches
MODELS = {
    "token": {},
    "mean": {"global_pool": "avg"},
    "mean-no-class": {"global_pool": "avg", "class_token": False},
    "mean-of-all": {"global_pool": "avg", "pool_include_prefix": True},
    "mean-and-max": {"global_pool": "avgmax"},
    "max": {"global_pool": "max"},
    "attention-pool": {"global_pool": "map", "class_token": False},
    "dinov2": {"reg_tokens": 3, "init_values": 0.5, "qk_norm": True, "no_embed_class": True},
    "swiglu": {"mlp_layer": timm.layers.SwiGLUPacked, "mlp_ratio": 2.0, "norm_layer": torch.nn.LayerNorm},
}
CONFIGS = {
    "tome": MergeConfig(r=6),
    "mame": MergeConfig(method="mame", threshold=0.3, layers=range(3)),
    "random_prune": MergeConfig(method="random_prune", r=6),
    "attention_prune": MergeConfig(method="attention_prune", r=6),
    "kmeans": MergeConfig(method="kmeans", r=6),
    "greedy": MergeConfig(method="greedy", r=6),
}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}  # sums in another order, through three blocks

every_model = pytest.mark.parametrize("name", MODELS)
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model with larger weights: freshly built ones are nearly linear, and hide mistakes."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def make(name: str = "token", **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return shaken(timm.create_model(NAME, num_classes=5, **SMALL, **MODELS[name], **options))


def wrapper(cls: str, architecture: str = NAME, **options) -> tf.PreTrainedModel:
    arguments = {**SMALL, **options} if architecture == NAME else options
    config = tf.TimmWrapperConfig(architecture=architecture, num_labels=5, model_args=arguments)
    return shaken(getattr(tf, cls)(config))


@torch.no_grad()
def run(model: torch.nn.Module, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    return model(pixels)


@every_model
def test_r0_is_bit_identical_and_remove_is_exact(name):
    model = make(name)
    keys, classes, plain = list(model.state_dict()), [type(part) for part in model.modules()], run(model)
    hf_tome.apply(model, MergeConfig(r=0))
    assert torch.equal(run(model), plain)
    hf_tome.apply(model, MergeConfig(r=6))
    assert not torch.allclose(run(model), plain, atol=1e-4)
    assert list(model.state_dict()) == keys
    assert torch.equal(run(hf_tome.remove(model)), plain)
    assert [type(part) for part in model.modules()] == classes


@every_model
def test_pooling_by_size_agrees_with_the_restored_grid(name):
    direct = run(hf_tome.apply(make(name), MergeConfig(r=6)))
    restored = run(hf_tome.apply(make(name), MergeConfig(r=6, restore=True)))
    torch.testing.assert_close(direct, restored, **ROUNDING)


@every_config
@every_model
def test_an_image_gives_the_same_alone_and_without_the_fused_kernel(name, config):
    model = hf_tome.apply(make(name), config)
    together = run(model)
    alone = torch.cat([run(model, image[None]) for image in PIXELS])
    if config.method != "random_prune":  # which draws for each place in the batch
        torch.testing.assert_close(together, alone, **ROUNDING)
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    assert hf_tome.report(model).towers[0].backend == "eager"
    torch.testing.assert_close(run(model), together, atol=1e-4, rtol=1e-4)


@every_model
def test_report_and_trace(name):
    model = hf_tome.apply(make(name), MergeConfig(r=6, trace=True))
    special = model.num_prefix_tokens
    planned = hf_tome.report(model).towers[0]
    run(model)
    measured, found = hf_tome.report(model).towers[0], hf_tome.trace(model)
    assert measured.tokens == planned.tokens
    assert measured.tokens_out == 64 + special - 18
    assert measured.gflops < measured.gflops_unmerged
    torch.testing.assert_close(found.size.sum(dim=(1, 2)), torch.full((2,), 64.0 + special))
    assert (found.size[:, :special] == 1).all()


def test_it_gives_what_the_same_weights_give_in_transformers():
    model = make()
    config = tf.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=128, image_size=32,
        patch_size=4, num_labels=5, layer_norm_eps=1e-6,
    )  # fmt: skip
    twin = tf.ViTForImageClassification(config).eval()
    twin.load_state_dict(in_transformers(model.state_dict(), twin.state_dict(), 32))
    for merge_config in (MergeConfig(r=0), *CONFIGS.values()):
        hf_tome.apply(model, merge_config)
        hf_tome.apply(twin, merge_config)
        with torch.no_grad():
            torch.testing.assert_close(run(model), twin(PIXELS).logits, **ROUNDING)


def in_transformers(weights: dict, wanted: dict, width: int) -> dict:
    """Return timm's weights, or parts of them, under the names of transformers' ViT."""
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "attention.o_proj": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "vit.layernorm": "norm",
        "classifier": "head",
        "vit.": "",
        "layers.": "blocks.",
    }
    found = {}
    for key in wanted:
        name, rows = key, slice(None)
        for part, letter in enumerate("qkv"):
            if f".{letter}_proj." in name:
                name, rows = (
                    name.replace(f"attention.{letter}_proj", "attn.qkv"),
                    slice(width * part, width * part + width),
                )
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        found[key] = weights[name][rows]
    return found


@torch.no_grad()
def test_deit_gives_what_it_gives_in_transformers(data):
    twin = tf.ViTForImageClassification.from_pretrained(data / "deit-tiny-patch16-224", dtype=torch.float32).eval()
    model = timm.create_model("deit_tiny_patch16_224").eval()
    weights = twin.state_dict()
    for name, place in in_transformers(model.state_dict(), weights, 192).items():
        place.copy_(weights[name])
    processor = tf.ViTImageProcessorPil.from_pretrained(data / "deit-tiny-patch16-224")
    photographs = sorted((data / "imagenet_sample" / "validation").rglob("*.jpg"))[::100]
    pixels = processor([Image.open(path).convert("RGB") for path in photographs], return_tensors="pt")["pixel_values"]
    for config in (MergeConfig(r=0), MergeConfig(r=8), MergeConfig(r=13), MergeConfig(method="mame", threshold=0.8)):
        merged = run(hf_tome.apply(model, config), pixels)
        expected = hf_tome.apply(twin, config)(pixels).logits
        torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)  # logits of up to 15, after twelve blocks


@pytest.mark.parametrize("cls", ["TimmWrapperForImageClassification", "TimmWrapperModel"])
def test_wrappers_save_and_load(cls, tmp_path):
    model = wrapper(cls, global_pool="avg")
    plain = model(PIXELS)[0].detach()
    hf_tome.apply(model, MergeConfig(r=6))
    with torch.no_grad():
        out = model(PIXELS)
    assert out[0].shape == plain.shape if "Classification" in cls else out[0].shape == (2, 65 - 18, 32)
    hf_tome.save_pretrained(model, tmp_path)
    loaded = hf_tome.from_pretrained(tmp_path, auto_class=getattr(tf, cls)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(PIXELS)[-1], out[-1])
        unmerged = getattr(tf, cls).from_pretrained(tmp_path).eval()(PIXELS)[0]
    assert torch.equal(unmerged, plain)


def test_a_distillation_token_is_protected():
    model = shaken(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, **SMALL))
    plain = run(model)
    assert torch.equal(run(hf_tome.apply(model, MergeConfig(r=0))), plain)
    direct = run(hf_tome.apply(model, MergeConfig(r=6)))
    assert hf_tome.report(model).towers[0].num_prefix_tokens == 2
    torch.testing.assert_close(direct, run(hf_tome.apply(model, MergeConfig(r=6, restore=True))), **ROUNDING)


@every_model
def test_copies_pickles_compiles_and_trains(name):
    model = hf_tome.apply(make(name), MergeConfig(r=6))
    merged = run(model)
    assert torch.equal(run(copy.deepcopy(model)), merged)
    assert torch.equal(run(pickle.loads(pickle.dumps(model))), merged)
    model.train()(PIXELS).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_config
@pytest.mark.parametrize("name", ["mean", "dinov2"])
def test_checkpointed_gradients_equal_plain_ones(name, config):
    gradients = []
    for checkpointing in (False, True):
        model = hf_tome.apply(make(name), config).train()
        model.set_grad_checkpointing(checkpointing)
        model(PIXELS).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        assert torch.equal(plain, checkpointed)


def test_the_wrapper_checkpoints():
    model = hf_tome.apply(wrapper("TimmWrapperForImageClassification"), MergeConfig(r=6)).train()
    model.activation_checkpointing_enable()
    model(PIXELS, labels=torch.tensor([0, 1])).loss.backward()
    assert model.timm_model.grad_checkpointing
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_compiles():
    model = hf_tome.apply(make("mean"), MergeConfig(r=6))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled), run(model), **ROUNDING)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: timm.create_model("resnet18"), "Found no encoder"),
        (lambda: wrapper("TimmWrapperForImageClassification", "resnet18"), "only its VisionTransformer"),
        (lambda: make(block_fn=timm.models.vision_transformer.ParallelScalingBlock), "ParallelScalingBlock"),
        (lambda: make(patch_drop_rate=0.5), "patch_drop_rate=0"),
        (lambda: wrapper("TimmWrapperModel", features_only=True), "features_only"),
    ],
)
def test_what_is_refused(build, message):
    with pytest.raises(UnsupportedModelError, match=message):
        hf_tome.apply(build(), MergeConfig(r=6))


def test_a_hybrid_merges_without_a_count_of_its_cost():
    model = shaken(timm.create_model("vit_tiny_r_s16_p8_224", img_size=64, num_classes=5))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    plain = run(model, pixels)
    assert torch.equal(run(hf_tome.apply(model, MergeConfig(r=0)), pixels), plain)
    run(hf_tome.apply(model, MergeConfig(r=[1])), pixels)
    found = hf_tome.report(model).towers[0]
    assert found.tokens[0] == (5, 4)
    assert found.gflops is None


def test_calls_that_need_the_grid_are_refused():
    model = hf_tome.apply(wrapper("TimmWrapperForImageClassification"), MergeConfig(r=6))
    with pytest.raises(UnsupportedModelError, match="output_hidden_states"):
        model(PIXELS, output_hidden_states=True)
    with pytest.raises(UnsupportedModelError, match="attn_mask"):
        model(PIXELS, attn_mask=torch.ones(65, 65))

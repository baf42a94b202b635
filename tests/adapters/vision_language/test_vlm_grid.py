"""Vision-language models that need the grid behind the tower: it runs merged, and what follows sees all tokens."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
import transformers as tf

from hf_tome import MergeConfig, UnsupportedModelError, apply, remove, report
from hf_tome.adapters.vision_language.models import VISION_LANGUAGE
from hf_tome.api import targets
from hf_tome.patching.patch import is_patched

IMAGE_TOKEN, VIDEO_TOKEN = 98, 97
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
SQUARE = {"image_size": 32, "patch_size": 4}
SPECIAL = {"eos_token_id": 96, "bos_token_id": 95, "pad_token_id": 0}
TEXT = {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 99, **SPECIAL}
CLIP = {"model_type": "clip_vision_model", **SMALL, **SQUARE}
SIGLIP = {"model_type": "siglip_vision_model", **SMALL, **SQUARE, "vision_use_head": False}
CONFIGS = {
    "tome": MergeConfig(r=6),
    "mame": MergeConfig(method="mame", threshold=0.4, layers=range(3)),
}


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Grid:
    """A model, its config, the images it is fed, and the keywords of its image tokens."""

    name: str
    vision: dict
    text: str = "llama"
    options: dict = field(default_factory=dict)
    images: dict = field(default_factory=lambda: {"pixel_values": noise(2, 3, 32, 32)})
    token: str = "image_token_index"
    modality: str = "image"
    run: int = 4  # blocks that merge

    def make(self, backend="sdpa"):
        torch.manual_seed(0)
        tokens = {self.token: IMAGE_TOKEN}
        if self.modality == "video" or self.name in ("LlavaOnevision", "VideoLlava", "LlavaNextVideo"):
            tokens["video_token_index"] = VIDEO_TOKEN
        config = getattr(tf, f"{self.name}Config")(
            vision_config=self.vision, text_config={"model_type": self.text, **TEXT}, **tokens, **self.options
        )
        model = getattr(tf, f"{self.name}ForConditionalGeneration")._from_config(config, attn_implementation=backend)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2 and parameter.std() == 0:
                    parameter.normal_(std=0.1)  # Gemma3's projector starts at zero
                elif parameter.ndim >= 2 and parameter.std() < 0.06:
                    parameter.mul_(4)
        return model.eval()

    def inputs(self, model):
        features = getattr(model.base_model, f"get_{self.modality}_features")(**self.images).pooler_output
        count = sum(rows.shape[:-1].numel() for rows in features)
        token = IMAGE_TOKEN if self.modality == "image" else VIDEO_TOKEN
        ids = torch.tensor([[5, 6, *[token] * count, 7, 8, 9]])
        extra = {"token_type_ids": (ids == token).long()} if self.name == "Gemma3" else {}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.images, **extra}


NAFLEX = {
    "pixel_values": noise(2, 64, 48),
    "spatial_shapes": torch.tensor([[8, 8], [4, 12]]),
    "pixel_attention_mask": (torch.arange(64) < torch.tensor([[64], [48]])).long(),
}
ANYRES = {"pixel_values": noise(2, 3, 3, 32, 32), "image_sizes": torch.tensor([[64, 32], [50, 30]])}
PINPOINTS = {"image_grid_pinpoints": [[32, 64], [64, 32]]}
TILES = {"pixel_values": noise(1, 2, 3, 32, 32)}
VIDEO = {"pixel_values_videos": noise(1, 2, 3, 32, 32)}

MODELS = (
    Grid("LlavaNext", CLIP, options=PINPOINTS, images=ANYRES, run=3),
    Grid("LlavaNextVideo", CLIP, options=PINPOINTS, images=ANYRES, run=3),
    Grid("LlavaNextVideo", CLIP, options=PINPOINTS, images=VIDEO, modality="video", run=3),
    Grid("LlavaOnevision", SIGLIP, "qwen2", options=PINPOINTS, images=ANYRES),
    Grid("LlavaOnevision", SIGLIP, "qwen2", options=PINPOINTS, images=VIDEO, modality="video"),
    Grid("VideoLlava", CLIP, images={"pixel_values_images": noise(2, 3, 32, 32)}, run=3),
    Grid("VideoLlava", CLIP, images={"pixel_values_videos": noise(1, 8, 3, 32, 32)}, modality="video", run=3),
    Grid("Gemma3", SIGLIP, "gemma3_text", options={"mm_tokens_per_image": 16}),
    Grid("AyaVision", SIGLIP, "cohere2"),
    Grid("Cohere2Vision", SIGLIP, "cohere2", token="image_token_id", options={"alignment_intermediate_size": 32}),
    Grid(
        "Lfm2Vl",
        {"model_type": "siglip2_vision_model", **SMALL, "num_patches": 64, "patch_size": 4, "vision_use_head": False},
        "lfm2",
        images=NAFLEX,
        token="image_token_id",
        options={"projector_hidden_size": 32},
    ),
    Grid("Idefics3", {**SMALL, **SQUARE}, images=TILES, token="image_token_id"),
    Grid("SmolVLM", {**SMALL, **SQUARE}, images=TILES, token="image_token_id"),
    Grid("InternVL", {**SMALL, **SQUARE, "use_qk_norm": True}, "qwen2", token="image_token_id"),
)

LAYERS = ("LlavaNext", "LlavaNextVideo", "LlavaOnevision", "VideoLlava", "AyaVision", "InternVL")
"""Those whose calls may name a feature layer."""

every_model = pytest.mark.parametrize("grid", MODELS, ids=lambda grid: f"{grid.name}-{grid.modality}")
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_every_row_has_a_model():
    tested = {f"{grid.name}Model" for grid in MODELS} | {"T5Gemma2Encoder", "PI0Model"}
    assert tested == {name for name, rows in VISION_LANGUAGE.items() if any(row.unmerge for row in rows)}


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@every_config
@every_model
def test_the_tower_merges_and_the_language_model_sees_all(grid, config, backend):
    model = grid.make(backend)
    inputs = grid.inputs(model)
    plain, tokens = model(**inputs).logits, model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for nothing in (MergeConfig(r=0), MergeConfig(method="mame", layers=[])):
        apply(model, nothing)
        assert torch.equal(model(**inputs).logits, plain)
    apply(model, config)
    logits = model(**inputs).logits
    assert logits.shape == plain.shape
    assert not torch.allclose(logits, plain, atol=1e-4)
    torch.testing.assert_close(grid.make(backend)(**inputs).logits, plain)
    generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    ran = [tower for tower in targets(model) if tower.recorder.summary is not None]
    assert ran
    for tower in ran:
        assert tower.plan.num_layers == grid.run
        assert tower.recorder.summary.tokens[-1] < tower.recorder.summary.tokens[0]
    remove(model)
    assert torch.equal(model(**inputs).logits, plain)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), tokens)
    assert not any(is_patched(module) for module in model.modules())


@every_config
@every_model
def test_features_are_those_of_the_tower_restored_by_itself(grid, config):
    # The tower taken out of the model, its blocks cut behind the one that is read, and merged with `restore=True`.
    model = apply(grid.make(), config)
    tower = targets(model)[0]
    alone = remove(copy.deepcopy(model)).get_submodule(tower.path)
    path = tower.plan.family.layers.split(".")
    blocks = alone.get_submodule(".".join(path[:-1])) if len(path) > 1 else alone
    setattr(blocks, path[-1], getattr(blocks, path[-1])[: grid.run])
    restored = {**config.to_dict(), "restore": True, "proportional_attention": tower.plan.proportional}
    apply(alone, MergeConfig.from_dict(restored))
    caught = {}

    def catch(name):
        def hook(module, args, kwargs, out):
            caught[name] = (args, kwargs, out)

        return hook

    for name, module in (("inside", model.get_submodule(tower.path)), ("alone", alone)):
        last = module.get_submodule(tower.plan.family.layers)[grid.run - 1]
        last.register_forward_hook(catch(name), with_kwargs=True)
    model.get_submodule(tower.path).register_forward_hook(catch("tower"), with_kwargs=True)
    getattr(model.base_model, f"get_{grid.modality}_features")(**grid.images)
    if "tower" not in caught:
        pytest.skip("this model's first tower is the one for images")
    args, kwargs, _ = caught["tower"]
    alone(*args, **{name: value for name, value in kwargs.items() if "output" not in name})
    torch.testing.assert_close(caught["inside"][2], caught["alone"][2])
    assert caught["inside"][0][0].shape[1] < caught["inside"][2].shape[1]


@pytest.mark.parametrize(
    "grid", [grid for grid in MODELS if grid.name in LAYERS], ids=lambda grid: f"{grid.name}-{grid.modality}"
)
def test_a_layer_of_one_call_before_the_grid_is_back(grid):
    model = grid.make()
    inputs = grid.inputs(model)
    plain = model(**inputs, vision_feature_layer=1).logits
    assert torch.equal(apply(model, MergeConfig(r=0))(**inputs, vision_feature_layer=1).logits, plain)
    apply(model, MergeConfig(r=6))
    later = model(**inputs, vision_feature_layer=-1)  # the grid is back
    assert later.logits.shape == plain.shape
    with pytest.raises(ValueError, match=r"`vision_feature_layer` is 1 in this call.*before block"):
        model(**inputs, vision_feature_layer=1)
    assert torch.equal(remove(model)(**inputs, vision_feature_layer=1).logits, plain)


@every_model
def test_what_is_said_and_what_is_refused(grid):
    model = grid.make()
    with pytest.raises(UnsupportedModelError, match=r"needs every token.*drops tokens for good"):
        apply(model, MergeConfig(method="random_prune", r=4))
    text = str(report(apply(model, MergeConfig(r=6))))
    assert "needs every token" in text
    assert f"all tokens are unmerged after block {grid.run - 1}" in text
    assert report(model).towers[0].gflops < report(model).towers[0].gflops_unmerged


def test_the_encoder_of_t5gemma2():
    torch.manual_seed(0)
    text = {**TEXT, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    config = tf.T5Gemma2Config(
        encoder={"text_config": text, "vision_config": SIGLIP, "mm_tokens_per_image": 16, "image_token_index": 98},
        decoder=text,
        image_token_index=98,
    )
    model = tf.T5Gemma2ForConditionalGeneration(config).eval()
    ids = torch.tensor([[5, *[98] * 16, 7, 8]])
    inputs = {"input_ids": ids, "pixel_values": noise(1, 3, 32, 32), "decoder_input_ids": torch.tensor([[1, 2]])}
    plain = model(**inputs).logits
    apply(model, MergeConfig(r=6))
    assert model(**inputs).logits.shape == plain.shape
    assert targets(model)[0].recorder.summary.tokens == [64, 58, 52, 46, 40]
    remove(model)
    assert torch.equal(model(**inputs).logits, plain)


def test_shieldgemma2():
    torch.manual_seed(0)
    text = {"model_type": "gemma3_text", **TEXT}
    config = tf.ShieldGemma2Config(
        text_config=text, vision_config=SIGLIP, mm_tokens_per_image=16, image_token_index=IMAGE_TOKEN
    )
    model = tf.ShieldGemma2ForImageClassification(config).eval()
    model.yes_token_index, model.no_token_index = 3, 4
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=0.1)
    ids = torch.tensor([[5, *[IMAGE_TOKEN] * 16, 7, 8]])
    inputs = {"input_ids": ids, "pixel_values": noise(1, 3, 32, 32), "token_type_ids": (ids == IMAGE_TOKEN).long()}
    plain = model(**inputs, attention_mask=torch.ones_like(ids)).logits
    apply(model, MergeConfig(r=6))
    found = model(**inputs, attention_mask=torch.ones_like(ids)).logits
    assert targets(model)[0].recorder.summary.tokens == [64, 58, 52, 46, 40]
    assert not torch.allclose(found, plain, atol=1e-4)
    assert found.shape == plain.shape


def test_pi0():
    torch.manual_seed(0)
    text = {"model_type": "gemma", **TEXT}
    vlm = {"text_config": text, "vision_config": SIGLIP, "projection_dim": 32, "image_token_index": IMAGE_TOKEN}
    config = tf.PI0Config(
        vlm_config={"model_type": "paligemma", **vlm}, dit_config=text, chunk_size=4, max_state_dim=5, max_action_dim=5
    )
    model = tf.PI0ForConditionalGeneration(config).eval()
    ids = torch.tensor([[5, *[IMAGE_TOKEN] * 128, 7, 8]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": noise(1, 2, 3, 32, 32),
        "pixel_attention_mask": torch.ones(1, 2, dtype=torch.int64),
        "state": noise(1, 5),
        "noise": noise(1, 4, 5),
        "timestep": torch.tensor([0.5]),
    }
    plain = model(**inputs).logits
    found = apply(model, MergeConfig(r=6))(**inputs).logits
    assert targets(model)[0].recorder.summary.tokens == [64, 58, 52, 46, 40]
    assert not torch.allclose(found, plain, atol=1e-4)
    assert found.shape == plain.shape


def test_a_llava_with_a_packed_tower_is_refused():
    config = tf.LlavaConfig(
        vision_config={"model_type": "pixtral", **SMALL, **SQUARE},
        text_config={"model_type": "llama", **TEXT},
        image_token_index=IMAGE_TOKEN,
    )
    with pytest.raises(UnsupportedModelError, match=r"'llava'.*tower of type 'pixtral'.*packs the patches"):
        apply(tf.LlavaForConditionalGeneration(config), MergeConfig(r=6))

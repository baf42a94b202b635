"""`where="groups"` in whole models: the language model gets the groups that are left, and all else follows."""

import copy

import pytest
import torch
from installed import CACHE
from vlms import (
    BY_NAME,
    CLOSE,
    GLM_VISION,
    IMAGE_TOKEN,
    IMAGES,
    NEW,
    VIDEO_TOKEN,
    Vlm,
    patches,
    smooth,
    texts_for,
)

from hf_tome import MergeConfig, UnsupportedModelError, apply, from_pretrained, remove, report, save_pretrained
from hf_tome.adapters.vision_language.vlm import FULL, PLACES
from hf_tome.patching.patch import is_patched

TOME = MergeConfig(r=2, where="groups")
RESTORED = MergeConfig(r=2, where="groups", restore=True)
CONFIGS = {
    "tome": TOME,
    "mame": MergeConfig(method="mame", threshold=0.2, layers=range(2), where="groups"),
    "late": MergeConfig(r=[0, 0, 5], where="groups"),  # behind what deepstack reads
}


NAMES = (
    *("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe", "Qwen3_5", "Qwen3_5Moe", "CohereCompass", "Exaone4_5_"),
    *("Glm4v", "Glm4vMoe", "Glm46V", "GlmOcr", "Ernie4_5_VLMoe", "Cosmos3Omni", "Cosmos3Edge", "HyperCLOVAXVisionV2"),
)
QUICK = ("Qwen2_5_VL", "Qwen3VL", "Glm4v", "Cosmos3Edge", "Exaone4_5_")
every_vlm = pytest.mark.parametrize(
    "vlm",
    [pytest.param(BY_NAME[name], id=name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES],
)
some_vlms = pytest.mark.parametrize("vlm", [BY_NAME["Qwen2_5_VL"], BY_NAME["Qwen3VL"]], ids=lambda vlm: vlm.name)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def merged(vlm, config=TOME):
    model = vlm.make()
    return model, apply(copy.deepcopy(model), config)


def alone(vlm, unmerged, model, pieces, chosen):
    """Return one prompt for the unmerged model: the merged model's features, in the columns whose groups are left."""
    if not chosen:
        return vlm.prompts([pieces], [[]])
    images = vlm.images([chosen])
    out = model.base_model.get_image_features(**images, return_dict=True)
    whole = vlm.prompts([pieces], [getattr(out, FULL)])
    columns = (whole["input_ids"][0] == IMAGE_TOKEN).nonzero()[:, 0].split(getattr(out, FULL))
    keep = whole["input_ids"][0] != IMAGE_TOKEN
    for own, places in zip(columns, getattr(out, PLACES)):
        keep[own[places]] = True
    inputs = {name: value[:, keep] for name, value in whole.items()}
    if vlm.connector.mrope:
        positions, _ = unmerged.model.get_rope_index(**whole, image_grid_thw=images["image_grid_thw"])
        inputs["position_ids"] = torch.cat([torch.arange(int(keep.sum()))[None, None], positions[:, :, keep]])
    return {**inputs, "mm_encoder_outputs": {"image": out}}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@every_vlm
def test_every_prompt_of_a_batch_is_as_if_alone_with_its_groups(vlm, config):
    unmerged, model = merged(vlm, config)
    inputs = vlm.inputs(unmerged, IMAGES)
    logits, tokens = model(**inputs).logits, model.generate(**inputs)
    length = inputs["input_ids"].shape[1]
    assert logits.shape[1] < length
    assert torch.equal(tokens[:, :length], inputs["input_ids"])
    for row, (pieces, chosen) in enumerate(zip(texts_for(IMAGES), IMAGES)):
        one = alone(vlm, unmerged, model, pieces, chosen)
        expected = unmerged(**one).logits[0]
        torch.testing.assert_close(logits[row, -len(expected) :], expected, **CLOSE)
        generated = unmerged.generate(**one)[:, one["input_ids"].shape[1] :]
        assert torch.equal(tokens[row : row + 1, length:], generated)


@every_vlm
def test_each_group_that_is_left_stands_for_its_own(vlm):
    """The places of the groups that are left name each merged group once, in the order of the image."""
    unmerged, model = merged(vlm)
    images = vlm.images([[0, 1]])
    out = model.base_model.get_image_features(**images, return_dict=True)
    every = apply(unmerged, RESTORED).base_model.get_image_features(**images, return_dict=True)
    assert getattr(out, FULL) == [len(rows) for rows in every.pooler_output]
    for rows, full, places in zip(out.pooler_output, every.pooler_output, getattr(out, PLACES)):
        torch.testing.assert_close(rows, full[places], **CLOSE)
        assert places.tolist() == sorted(set(places.tolist()))
        same = torch.cdist(full, rows) < 1e-3
        assert torch.equal(same.sum(dim=1), torch.ones(len(full), dtype=torch.int64))
        assert same.any(dim=0).all()


@every_vlm
def test_r0_is_bit_identical_and_remove_is_exact(vlm):
    model = vlm.make()
    inputs = vlm.inputs(model, IMAGES)
    classes = [type(module) for module in model.modules()]
    logits = model(**inputs).logits
    apply(model, MergeConfig(where="groups"))
    assert torch.equal(model(**inputs).logits, logits)
    apply(model, TOME)
    assert model(**inputs).logits.shape[1] < logits.shape[1]
    assert torch.equal(remove(model)(**inputs).logits, logits)
    assert [type(module) for module in model.modules()] == classes


# ----------------------------------------------------------------------------------------------------- conversations


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static"}], ids=["beams", "static"])
def test_generation_modes(options):
    vlm = BY_NAME["Qwen3VL"]
    unmerged, model = merged(vlm)
    images = [[0, 1], [2]]
    inputs = vlm.inputs(unmerged, images)
    out = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for row, (pieces, chosen) in enumerate(zip(texts_for(images), images)):
        one = alone(vlm, unmerged, model, pieces, chosen)
        expected = unmerged.generate(**one, **options)[:, one["input_ids"].shape[1] :]
        assert torch.equal(out[row : row + 1], expected)


@some_vlms
def test_a_conversation_goes_on_with_its_cache(vlm):
    unmerged, model = merged(vlm)
    inputs, no_images = vlm.inputs(unmerged, [[0], [1]]), {"suppress_tokens": [IMAGE_TOKEN]}
    first = model.generate(**inputs, **no_images, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[5, 6, 7], [8, 9, 10]])], dim=1)
    more = torch.ones(2, NEW + 3, dtype=torch.int64)
    grown = {"attention_mask": torch.cat([inputs["attention_mask"], more], dim=1)}
    grown |= {name: torch.cat([inputs[name], 0 * more], dim=1) for name in vlm.type_names}
    whole = model.generate(input_ids=ids, **grown, **no_images, **vlm.images([[0], [1]]))
    assert torch.equal(model.generate(input_ids=ids, **grown, **no_images, **{CACHE: first[CACHE]}), whole)


def test_features_made_beforehand():
    vlm = BY_NAME["Qwen3VL"]
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, [[0, 1], [2]])
    expected = model(**inputs).logits
    features = model.model.get_image_features(**vlm.images([[0, 1], [2]]), return_dict=True)
    del inputs["pixel_values"]
    torch.testing.assert_close(model(**inputs, mm_encoder_outputs={"image": features}).logits, expected, **CLOSE)


@some_vlms
def test_of_videos_the_language_model_gets_every_group(vlm):
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, [[0]])
    video = {
        "pixel_values_videos": smooth(1, 1, 2 * 64, 96, seed=3)[0, 0],
        "video_grid_thw": torch.tensor([[2, 8, 8]]),
    }
    tokens = torch.tensor([[7, *[VIDEO_TOKEN] * 16, 8, *[VIDEO_TOKEN] * 16, 9]])
    if vlm.name != "Qwen3VL":  # whose frames stand apart
        tokens = torch.tensor([[7, *[VIDEO_TOKEN] * 32, 8]])
    kind = 2 * (tokens == VIDEO_TOKEN).long()
    ids = torch.cat([inputs["input_ids"], tokens], dim=1)
    types = torch.cat([inputs["mm_token_type_ids"], kind], dim=1)
    inputs.update(input_ids=ids, mm_token_type_ids=types, attention_mask=torch.ones_like(ids), **video)
    logits = model(**inputs).logits
    encoded = {
        "image": model.model.get_image_features(**vlm.images([[0]]), return_dict=True),
        "video": model.model.get_video_features(**video, return_dict=True),
    }
    assert sum(map(len, encoded["video"].pooler_output)) == 32
    keep = ids[0] != IMAGE_TOKEN
    keep[(ids[0] == IMAGE_TOKEN).nonzero()[:, 0][getattr(encoded["image"], PLACES)[0]]] = True
    grids = {name: inputs[name] for name in ("image_grid_thw", "video_grid_thw")}
    positions, _ = unmerged.model.get_rope_index(ids, types, **grids)
    expected = unmerged(input_ids=ids[:, keep], position_ids=positions[:, :, keep], mm_encoder_outputs=encoded).logits
    torch.testing.assert_close(logits, expected, **CLOSE)
    plain = unmerged.model.get_video_features(**video, return_dict=True)
    assert not torch.allclose(encoded["video"].pooler_output[0], plain.pooler_output[0], atol=1e-3)  # the tower merges


# ------------------------------------------------------------------------------------------------ around the model


def test_the_report_tells_of_tower_and_language_model():
    vlm = BY_NAME["Qwen3VL"]
    _, model = merged(vlm)
    before = str(report(model))
    vlm.features(model, [[0]])
    text = str(report(model))
    assert "stay merged to the language model, whose placeholders follow; of videos it gets every group" in text
    assert "tokens: 64 -> 56 -> 48 -> 40" in text
    line = "the language model gets 10 of 16 tokens of an image"
    assert line in text
    assert line not in before


def test_saves_and_loads(tmp_path):
    vlm = BY_NAME["Qwen2_5_VL"]
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, [[0]])
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert "inside its encoder" in (tmp_path / "README.md").read_text()


def test_a_conversation_with_a_new_image_is_refused():
    vlm = BY_NAME["Qwen3VL"]
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, [[0]])
    out = model.generate(**inputs, return_dict_in_generate=True)
    ids = torch.cat([out.sequences, inputs["input_ids"]], dim=1)
    with pytest.raises(ValueError, match=rf"new image.*{CACHE}"):
        model.generate(input_ids=ids, **vlm.images([[0]]), **{CACHE: out[CACHE]})


@pytest.mark.parametrize("name", ["PaddleOCRVL", "Kimi_K25", "VideoLlama3", "InternVL"])
def test_models_without_groups_are_told_why(name):
    model = BY_NAME[name].make()
    reason = r"`where='groups'` merges.*Supported: Qwen2Vision.*where='projected'"
    with pytest.raises(UnsupportedModelError, match=reason):
        apply(model, TOME)
    assert not any(is_patched(module) for module in model.modules())


def test_models_that_are_not_known_to_follow_are_told_why():
    vlm = Vlm("Glm5Next", GLM_VISION, "glm5_next_text", {"video_token_id": VIDEO_TOKEN}, images=patches)
    model = vlm.make()
    reason = r"fewer image tokens.*Glm5NextModel is not supported there: hf_tome has no row.*`restore=True`"
    with pytest.raises(UnsupportedModelError, match=reason):
        apply(model, TOME)
    assert not any(is_patched(module) for module in model.modules())
    plain, merged_features = vlm.features(model, [[0]]), vlm.features(apply(model, RESTORED), [[0]])
    assert [rows.shape for rows in plain] == [rows.shape for rows in merged_features]
    assert not torch.allclose(plain[0], merged_features[0], atol=1e-3)

"""Image tokens merged behind the projector: what merges, conversations, bad input, and what is refused."""

import copy
from operator import attrgetter

import pytest
import small
import speaking
import torch
import transformers as tf
from installed import CACHE
from transformers.modeling_outputs import BaseModelOutputWithPooling
from vlms import (
    BY_NAME,
    CASES,
    CLIP,
    CLOSE,
    CONFIGS,
    FEW,
    IMAGE_TOKEN,
    IMAGES,
    NEW,
    SMALL,
    SQUARE,
    TEXT,
    VIDEO_TOKEN,
    VLMS,
    by_hand,
    labels_of,
    merged,
    plain,
    smooth,
    texts_for,
)

from hf_tome import MergeConfig, UnsupportedModelError, apply, report
from hf_tome import trace as trace_of
from hf_tome.api import targets
from hf_tome.patching.patch import is_patched
from hf_tome.profiling.benchmark import benchmark
from hf_tome.profiling.slice_oracle import make_oracle, shallow_copy

every_case = pytest.mark.parametrize(("vlm", "where"), CASES, ids=[f"{vlm.name}-{where}" for vlm, where in CASES])
every_vlm = pytest.mark.parametrize("vlm", VLMS, ids=lambda vlm: vlm.name)
SOME = [BY_NAME[name] for name in ("Llava", "PaliGemma", "Gemma3", "LlavaNext", "Idefics3", "Qwen3VL", "Qwen3_5")]
some_vlms = pytest.mark.parametrize("vlm", SOME, ids=lambda vlm: vlm.name)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


# ------------------------------------------------------------------------------------- what merges behind a projector


@pytest.mark.parametrize(
    "config",
    [*(MergeConfig(r=r, where="projected") for r in (1, 5, 11, 50)), CONFIGS["projected", "mame"]],
    ids=["r=1", "r=5", "r=11", "r=50", "mame"],
)
@every_vlm
def test_tokens_merge_round_by_round_in_their_order(vlm, config):
    unmerged = vlm.make()
    model = apply(copy.deepcopy(unmerged), config)
    full, found = vlm.features(unmerged, [[0, 1]]), vlm.features(model, [[0, 1]])
    if vlm.connector.tile is not None:
        full = [tile for rows in full for tile in rows.split(attrgetter(vlm.connector.tile)(unmerged.model))]
    newline = attrgetter(vlm.connector.newline)(unmerged.model) if vlm.connector.newline else None
    assert len(full) == len(found)
    for rows, left in zip(full, found):
        expected, size, _ = by_hand(rows, newline, config)
        torch.testing.assert_close(left, expected, **CLOSE)
        torch.testing.assert_close(size.sum(), torch.tensor(float(len(rows))))
        if config.method == "tome":
            ends = 0 if newline is None else int((rows == newline).all(-1).sum())
            assert len(left) == max(len(rows) - config.r, ends + (ends < len(rows)))
            torch.testing.assert_close((left * size).sum(0), rows.sum(0), atol=1e-4, rtol=1e-4)
        if newline is not None:
            assert torch.equal((left == newline).all(-1).sum(), (rows == newline).all(-1).sum())


@pytest.mark.parametrize("name", ["random_prune", "kmeans", "greedy"])
def test_the_baselines(name):
    vlm = BY_NAME["InternVL"]
    model = apply(vlm.make(), MergeConfig(method=name, r=5, where="projected"))
    unmerged = plain(model)
    logits = model(**vlm.inputs(unmerged, IMAGES)).logits
    for row, alone in enumerate(vlm.rows_by_themselves(model, IMAGES)):
        expected = unmerged(**alone).logits[0]
        torch.testing.assert_close(logits[row, -len(expected) :], expected, **CLOSE)


@some_vlms
def test_report_and_trace(vlm):
    model = apply(vlm.make(), MergeConfig(r=5, where="projected", trace=True))
    text = str(report(model))
    assert "projected tokens before the language model" in text
    assert "run the model on some" in text
    vlm.features(model, [[0, 1]])
    told = report(model).towers[0]
    before, after = told.tokens[0]
    assert before - after == 5
    assert told.gflops is None
    assert told.path == "model"
    assert told.tower == f"{vlm.name}Model"
    assert "behind the projector" in text
    assert "protected" not in text
    went = trace_of(model)
    for source, size in zip(went.source, went.size):
        real, held = source[source >= 0], size[..., 0]
        assert len(real) == round(held.sum().item())
        assert torch.equal(real.bincount(minlength=len(held)).float(), held)
    apply(model, MergeConfig(r=10_000, where="projected"))
    vlm.features(model, [[0, 1]])
    assert "fewer than the r=10000 asked for can merge" in str(report(model))


@pytest.mark.parametrize("ratio", [0.25, 0.7])
def test_a_ratio_is_the_share_of_an_image(ratio):
    vlm = BY_NAME["InternVL"]
    model = apply(vlm.make(), MergeConfig(ratio=ratio, where="projected"))
    vlm.features(model, [[0]])
    before, after = report(model).towers[0].tokens[0]
    assert before - after == int(ratio * before + 1e-9)


@torch.enable_grad()
@some_vlms
def test_gradients_reach_the_tower(vlm):
    _, model = merged(vlm)
    inputs = vlm.inputs(plain(model), [[0]])
    model(**inputs, labels=labels_of(inputs)).loss.backward()
    tower = next(
        value for name, value in model.named_parameters() if ("vision" in name or "visual" in name) and value.ndim == 2
    )
    assert tower.grad.abs().max() > 0


def test_videos_beside_images_in_qwen():
    vlm = BY_NAME["Qwen2_5_VL"]
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, [[0]])
    video = {
        "pixel_values_videos": smooth(1, 1, 2 * 64, 96, seed=3)[0, 0],
        "video_grid_thw": torch.tensor([[2, 8, 8]]),
    }
    tokens = torch.tensor([[7, *[VIDEO_TOKEN] * 32, 8]])
    kind = 2 * (tokens == VIDEO_TOKEN).long()
    ids = torch.cat([inputs["input_ids"], tokens], dim=1)
    types = torch.cat([inputs["mm_token_type_ids"], kind], dim=1)
    inputs.update(input_ids=ids, mm_token_type_ids=types, attention_mask=torch.ones_like(ids), **video)
    logits = model(**inputs).logits
    (rows,) = vlm.features(unmerged, [[0]])
    merged_rows, _, place = by_hand(rows, None, CONFIGS["projected", "tome"])
    columns = (ids[0] == IMAGE_TOKEN).nonzero()[:, 0]
    keep = ids[0] != IMAGE_TOKEN
    keep[columns[place]] = True
    grids = {name: inputs[name] for name in ("image_grid_thw", "video_grid_thw")}
    positions, _ = unmerged.model.get_rope_index(ids, types, **grids)
    expected = unmerged(
        input_ids=ids[:, keep],
        position_ids=positions[:, :, keep],
        mm_encoder_outputs={
            "image": BaseModelOutputWithPooling(pooler_output=[merged_rows]),
            "video": unmerged.model.get_video_features(**video, return_dict=True),
        },
    ).logits
    torch.testing.assert_close(logits, expected, **CLOSE)


def with_video(inputs, columns):
    tokens = torch.tensor([[7, *[VIDEO_TOKEN] * columns, 8]])
    ids = torch.cat([inputs["input_ids"], tokens], dim=1)
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("name", ["LlavaOnevision", "LlavaNextVideo"])
def test_videos_beside_images_keep_their_tokens(name):
    vlm = BY_NAME[name]
    model = apply(vlm.make(), CONFIGS["projected", "tome"])
    unmerged = plain(model)
    video = smooth(1, 2, 3, 32, 32, seed=3)
    columns = unmerged.model.get_video_features(video).pooler_output.reshape(-1, 32).shape[0]

    inputs = {**with_video(vlm.inputs(unmerged, [[0]]), columns), "pixel_values_videos": video}
    (alone,) = vlm.rows_by_themselves(model, [[0]])
    alone = with_video(alone, columns)
    alone["mm_encoder_outputs"]["video"] = unmerged.model.get_video_features(video, return_dict=True)
    torch.testing.assert_close(model(**inputs).logits, unmerged(**alone).logits, **CLOSE)
    assert "videos keep all of theirs" in str(report(model))
    length = inputs["input_ids"].shape[1]
    expected = unmerged.generate(**alone)[:, alone["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**inputs)[:, length:], expected)


@pytest.mark.parametrize("name", ["VideoLlama3", "Kimi_K25", "Lfm3Vl", "PerceptionLM", "Exaone4_5_"])
def test_videos_like_images_keep_their_tokens(name):
    vlm = BY_NAME[name]
    unmerged, model = merged(vlm)
    pixels = vlm.images([[1]])
    names = vlm.connector.videos or ("pixel_values_videos",)
    video = dict(zip(names, (pixels[name] for name in vlm.connector.pixels)))
    encoded = unmerged.model.get_image_features(**pixels, return_dict=True)
    columns = sum(map(len, encoded.pooler_output))
    inputs = {**with_video(vlm.inputs(unmerged, [[0]]), columns), **video}
    (alone,) = vlm.rows_by_themselves(model, [[0]])
    alone = with_video(alone, columns)
    alone["mm_encoder_outputs"]["video"] = encoded
    torch.testing.assert_close(model(**inputs).logits, unmerged(**alone).logits, **CLOSE)
    length = inputs["input_ids"].shape[1]
    expected = unmerged.generate(**alone)[:, alone["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**inputs)[:, length:], expected)
    no_image = {**with_video(vlm.prompts([[[5, 6]]], [[]]), columns), **video}
    assert torch.equal(model(**no_image).logits, unmerged(**no_image).logits)
    assert torch.equal(model.generate(**no_image), unmerged.generate(**no_image))
    assert len(torch.cat(list(model.model.get_image_features(**pixels, return_dict=True).pooler_output))) < columns


# ----------------------------------------------------------------------------------------------------- conversations

GENERATION = {
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("options", GENERATION.values(), ids=GENERATION.keys())
@pytest.mark.parametrize("where", ["tower", "projected"])
@some_vlms
def test_generation_modes(vlm, where, options):
    if where == "tower" and vlm.name not in FEW:
        pytest.skip("its tower's grid is restored")
    unmerged, model = merged(vlm, "tome", where)
    inputs = vlm.inputs(unmerged, [[0, 1], [2]])
    length = inputs["input_ids"].shape[1]
    out = model.generate(**inputs, **options)
    for row, alone in enumerate(vlm.rows_by_themselves(model, [[0, 1], [2]])):
        expected = unmerged.generate(**alone, **options)[:, alone["input_ids"].shape[1] :]
        assert torch.equal(out[row : row + 1, length:], expected)


@pytest.mark.parametrize("where", ["tower", "projected"])
@some_vlms
def test_a_conversation_goes_on_with_its_cache(vlm, where):
    if where == "tower" and vlm.name not in FEW:
        pytest.skip("its tower's grid is restored")
    unmerged, model = merged(vlm, "tome", where)
    inputs, no_images = vlm.inputs(unmerged, [[0], [1]]), {"suppress_tokens": [IMAGE_TOKEN]}
    first = model.generate(**inputs, **no_images, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[5, 6, 7], [8, 9, 10]])], dim=1)
    more = torch.ones(2, NEW + 3, dtype=torch.int64)
    grown = {"attention_mask": torch.cat([inputs["attention_mask"], more], dim=1)}
    if vlm.types is not None:
        # What follows the prompt is text: in PaliGemma's suffix, and of no image in Gemma 3.
        types = more if vlm.name == "PaliGemma" else 0 * more
        grown |= {name: torch.cat([inputs[name], types], dim=1) for name in vlm.type_names}
    whole = model.generate(input_ids=ids, **grown, **no_images, **vlm.images([[0], [1]]))
    new = {name: x if name == "attention_mask" else x[:, -4:] for name, x in {"input_ids": ids, **grown}.items()}
    by_new = model.generate(**new, **no_images, **{CACHE: copy.deepcopy(first[CACHE])})
    assert torch.equal(by_new[:, 4:], whole[:, ids.shape[1] :])
    by_cache = model.generate(input_ids=ids, **grown, **no_images, **{CACHE: first[CACHE]})
    assert torch.equal(by_cache, whole)


@pytest.mark.parametrize("where", ["tower", "projected"])
@some_vlms
def test_a_loop_written_by_hand(vlm, where):
    if where == "tower" and vlm.name not in FEW:
        pytest.skip("its tower's grid is restored")
    unmerged, model = merged(vlm, "tome", where)
    inputs = vlm.inputs(unmerged, [[0, 1], [2]])
    expected = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    out, tokens, seen = model(**inputs, use_cache=True), [], inputs["attention_mask"]
    for _ in range(NEW):
        tokens.append(out.logits[:, -1:].argmax(-1))
        seen = torch.cat([seen, torch.ones(2, 1, dtype=torch.int64)], dim=1)
        out = model(input_ids=tokens[-1], attention_mask=seen, **{CACHE: out[CACHE]})
    assert torch.equal(torch.cat(tokens, dim=1), expected)


@pytest.mark.parametrize("vlm", [*SOME, BY_NAME["Exaone4_5_"]], ids=lambda vlm: vlm.name)
def test_generation_goes_on_from_the_cache_of_a_forward_pass(vlm):
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, [[0, 1], [2]])
    expected = model.generate(**inputs)
    tokens = expected[:, : inputs["input_ids"].shape[1] + 1]
    cache = model(**inputs, use_cache=True)[CACHE]
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.int64)], dim=1)
    found = model.generate(input_ids=tokens, attention_mask=mask, **{CACHE: cache}, max_new_tokens=NEW - 1)
    assert torch.equal(found, expected)


@every_case
def test_embeddings_and_features_made_beforehand(vlm, where):
    unmerged, model = merged(vlm, "tome", where)
    inputs = vlm.inputs(unmerged, [[0, 1], [2]])
    expected, tokens = model(**inputs).logits, model.generate(**inputs)
    features = model.base_model.get_image_features(**vlm.images([[0, 1], [2]]), return_dict=True)
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    torch.testing.assert_close(model(**rest, mm_encoder_outputs={"image": features}).logits, expected, **CLOSE)
    assert torch.equal(model.generate(**rest, mm_encoder_outputs={"image": features}), tokens)


# --------------------------------------------------------------------------------------------------------- bad input


@every_case
def test_bad_input(vlm, where):
    unmerged, model = merged(vlm, "tome", where)
    inputs = vlm.inputs(unmerged, [[0]])
    first = (inputs["input_ids"][0] == IMAGE_TOKEN).nonzero()[0]
    fewer, none = inputs["input_ids"].clone(), inputs["input_ids"].clone()
    fewer[0, first] = 5
    none[none == IMAGE_TOKEN] = 5
    total = int((inputs["input_ids"] == IMAGE_TOKEN).sum())
    bad = (
        ({"input_ids": fewer}, rf"\[{total - 1}\] image placeholders.*need {total} in all"),
        ({"input_ids": none}, r"\[0\] image placeholders.*Write one image token"),
        (vlm.images([[0, 0]]), rf"\[{total}\] image placeholders.*need {2 * total} in all"),
    )
    for change, message in bad:
        for run in (model, model.generate):
            with pytest.raises(ValueError, match=message):
                run(**{**inputs, **change})
    out = model.generate(**inputs, return_dict_in_generate=True)
    ids = torch.cat([out.sequences, inputs["input_ids"]], dim=1)
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=rf"new image.*{CACHE}"):
            run(input_ids=ids, **vlm.images([[0]]), **{CACHE: out[CACHE]})


@pytest.mark.parametrize("where", ["tower", "projected"])
@pytest.mark.parametrize("name", ["Llava", "PaliGemma", "Janus"])
def test_an_image_of_the_wrong_size(name, where):
    unmerged, model = merged(BY_NAME[name], "tome", where)
    inputs = BY_NAME[name].inputs(unmerged, [[0]])
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=r"(?i)image size.*32"):
            run(**{**inputs, "pixel_values": inputs["pixel_values"][..., :28]})


def test_a_feature_layer_before_any_merge():
    with pytest.raises(ValueError, match=r"merges in blocks .* only.*before block 3.*vision_feature_layer"):
        apply(BY_NAME["Llava"].make(), MergeConfig(r=4, layers=[3]))
    with pytest.raises(ValueError, match=r"`layers` is .*no block merges"):
        MergeConfig(r=4, layers=[3], where="projected")


# -------------------------------------------------------------------------------------------------- what is refused


def shield_gemma():
    config = tf.ShieldGemma2Config(
        text_config={"model_type": "gemma3_text", **TEXT},
        vision_config=BY_NAME["Gemma3"].vision,
        mm_tokens_per_image=16,
        image_token_index=IMAGE_TOKEN,
    )
    return tf.ShieldGemma2ForImageClassification(config)


def pi0():
    vlm = BY_NAME["PaliGemma"]
    text = {"model_type": "gemma", **TEXT}
    options = {"vision_config": vlm.vision, "projection_dim": 32, "image_token_index": IMAGE_TOKEN}
    vlm_config = {"model_type": "paligemma", "text_config": text, **options}
    config = tf.PI0Config(vlm_config=vlm_config, dit_config=text, chunk_size=4, max_state_dim=5, max_action_dim=5)
    return tf.PI0ForConditionalGeneration(config)


def video_llava():
    text = {"model_type": "llama", **TEXT}
    tokens = {"image_token_index": IMAGE_TOKEN, "video_token_index": VIDEO_TOKEN}
    return tf.VideoLlavaForConditionalGeneration(tf.VideoLlavaConfig(vision_config=CLIP, text_config=text, **tokens))


def kosmos():
    vision = {**SMALL, **SQUARE}
    text = {"embed_dim": 32, "layers": 1, "ffn_dim": 48, "attention_heads": 2, "vocab_size": 99}
    config = tf.Kosmos2Config(vision_config=vision, text_config=text, latent_query_num=4)
    return tf.Kosmos2ForConditionalGeneration(config)


REFUSED = {
    "no row": (kosmos, r"Kosmos2.* no row for its projector yet.*Supported: LlavaModel"),
    "a classifier": (lambda: tf.ViTForImageClassification(tf.ViTConfig(**SMALL, **SQUARE)), "has no projector"),
    "a head around": (shield_gemma, r"ShieldGemma2ForImageClassification is not supported.*Gemma3ForConditional"),
    "an action expert": (pi0, r"PI0.* not supported"),
    "images and videos in one call": (video_llava, r"VideoLlava.*images and videos share one call"),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(build, message):
    model = build()
    with pytest.raises(UnsupportedModelError, match=message):
        apply(model, MergeConfig(r=4, where="projected"))
    assert not any(is_patched(module) for module in model.modules())
    assert targets(model) == []


def test_a_packed_tower_is_refused_with_what_can_be_done_instead():
    with pytest.raises(UnsupportedModelError, match=r"Mistral3.*packs the patches.*where='projected'"):
        apply(BY_NAME["Mistral3"].make(), MergeConfig(r=4))


def test_the_benchmark_measures_merging_before_the_language_model():
    model, processor = speaking.build()
    image = small.picture()
    inputs = dict(processor(images=[image, image], text=["<image> a photo"] * 2, return_tensors="pt"))
    result = benchmark(model, inputs, MergeConfig(r=40, where="projected"), rounds=2, warmup=1, memory=False)
    assert result.tokens == (speaking.PATCHES, speaking.PATCHES - 40)
    assert not any("multiply-adds" in warning for warning in result.warnings)  # those of the tower stay as they are
    oracle = make_oracle(shallow_copy(model), [result.tokens], where="projected")
    with torch.no_grad():
        merged = apply(shallow_copy(model), MergeConfig(r=40, where="projected"))(**inputs).logits
        assert oracle(**inputs).logits.shape == merged.shape
        assert merged.shape[1] < model(**inputs).logits.shape[1]


def test_the_received_attention_is_no_measure_of_projected_tokens():
    with pytest.raises(ValueError, match=r"`where` is 'projected', but method 'attention_prune' needs the attention"):
        MergeConfig(method="attention_prune", r=4, where="projected")


def test_features_that_do_not_say_where_they_belong():
    # Positions of Qwen-VL follow from the places that tokens keep.
    vlm = BY_NAME["Qwen2_5_VL"]
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, [[0]])
    features = BaseModelOutputWithPooling(pooler_output=vlm.features(model, [[0]]))
    del inputs["pixel_values"]
    with pytest.raises(ValueError, match=r"do not say which of them stay.*get_image_features"):
        model(**inputs, mm_encoder_outputs={"image": features})


def test_text_keeps_its_positions_behind_a_merged_image_of_qwen():
    vlm = BY_NAME["Qwen2_5_VL"]
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, [[0]])
    caught = []

    def catch(module, args, kwargs):
        caught.append(kwargs["position_ids"])

    for one in (unmerged, model):
        one.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
        one(**inputs, use_cache=False)
        one.generate(**inputs, max_new_tokens=2)
    (full, _, next_full), (fewer, _, next_fewer) = caught[:3], caught[3:]
    text = (inputs["input_ids"][0] == IMAGE_TOKEN).nonzero()[-1].item() + 1 - inputs["input_ids"].shape[1]
    assert fewer.shape[2] < full.shape[2]
    assert torch.equal(fewer[:, :, text:], full[:, :, text:])
    assert torch.equal(next_fewer[1:], next_full[1:])
    places = set(map(tuple, full[:, 0].T.tolist()))
    assert set(map(tuple, fewer[:, 0].T.tolist())) < places


def test_the_model_without_its_head():
    vlm = BY_NAME["Gemma3"]
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, IMAGES)
    expected = model(**inputs, output_hidden_states=True).hidden_states[-1]
    bare = apply(plain(model).model, CONFIGS["projected", "tome"])
    torch.testing.assert_close(bare(**inputs).last_hidden_state, expected, **CLOSE)


@some_vlms
def test_half_precision(vlm):
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, [[0, 1], [2]])
    full = model(**inputs).logits
    for dtype in (torch.bfloat16, torch.float16):
        half = model.to(dtype)(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}).logits
        assert half.dtype == dtype
        assert half.shape == full.shape
        assert half.isfinite().all()


def test_prompts_that_have_the_right_number_already():
    vlm = BY_NAME["Idefics3"]
    unmerged, model = merged(vlm)
    lengths = [[len(torch.cat(vlm.features(model, [[index]])))] for index in (0, 1)]
    inputs = {**vlm.prompts(texts_for([[0], [1]]), lengths), **vlm.images([[0], [1]])}
    found = model(**inputs).logits
    assert found.shape[1] == inputs["input_ids"].shape[1]
    torch.testing.assert_close(found, model(**vlm.inputs(unmerged, [[0], [1]])).logits, **CLOSE)


def test_features_of_unknown_length_are_taken_as_equal():
    vlm = BY_NAME["InternVL"]
    unmerged, model = merged(vlm)
    inputs = vlm.inputs(unmerged, [[0, 1]])
    rows = vlm.features(model, [[0, 1]])
    expected = model(**inputs).logits
    del inputs["pixel_values"]
    features = BaseModelOutputWithPooling(pooler_output=rows)
    torch.testing.assert_close(model(**inputs, mm_encoder_outputs={"image": features}).logits, expected, **CLOSE)

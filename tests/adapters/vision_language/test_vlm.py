"""LLaVA and its like: fewer image tokens reach the language model, and nothing else changes for the caller."""

import copy
import io
import pickle

import pytest
import torch
import transformers as tf
from installed import CACHE, CACHE_NAMES, checkpoint_activations
from torch import nn
from transformers.generation.configuration_utils import CompileConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_tome import MergeConfig, apply, from_pretrained, remove, report, save_pretrained, trace
from hf_tome.api import targets
from hf_tome.patching.patch import CONTEXT, is_patched

IMAGE_TOKEN, PAD, NEW = 98, 0, 6
VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TOWERS = {"clip": tf.CLIPVisionConfig, "siglip": tf.SiglipVisionConfig}
MODELS = [(name, tower) for name in ("Llava", "VipLlava") for tower in TOWERS]
CONFIGS = {
    "tome": MergeConfig(r=6),
    "mame": MergeConfig(method="mame", threshold=0.6, layers=range(3)),
}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}

every_model = pytest.mark.parametrize(("name", "tower"), MODELS, ids=["-".join(pair) for pair in MODELS])
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def make(name="Llava", tower="clip", backend="sdpa", **options):
    torch.manual_seed(0)
    if name == "Llava":
        options.setdefault("vision_feature_select_strategy", "default" if tower == "clip" else "full")
    else:
        options.setdefault("vision_feature_layer", [-2, -3, 1])
    config = getattr(tf, f"{name}Config")(
        vision_config=TOWERS[tower](**VISION, image_size=32, patch_size=4),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        **options,
    )
    model = getattr(tf, f"{name}ForConditionalGeneration")._from_config(config, attn_implementation=backend).eval()
    with torch.no_grad():  # freshly built models are nearly linear; larger weights make a mistake show
        for parameter in model.parameters():
            if parameter.ndim >= 2 and parameter.std() < 0.06:
                parameter.mul_(4)
    model.generation_config.update(eos_token_id=None, pad_token_id=PAD, max_new_tokens=NEW, do_sample=False)
    return model


def placeholders(model) -> int:
    """How many the processor writes for an image."""
    crops = getattr(model.config, "vision_feature_select_strategy", "default") == "default"
    return 64 + (model.config.vision_config.model_type == "clip_vision_model") - crops


def conversation(counts, seed=0):
    """Return a text for each row, as pieces between which the row's images stand, and the pixels of all images."""
    generator = torch.Generator().manual_seed(seed)
    texts = [
        [torch.randint(3, 90, (2 + row + piece,), generator=generator).tolist() for piece in range(count + 1)]
        for row, count in enumerate(counts)
    ]
    coarse = torch.randn(sum(counts), 3, 4, 4, generator=generator)  # smooth, so that MaMe finds tokens to merge
    pixels = 3 * nn.functional.interpolate(coarse, size=32) + torch.randn(sum(counts), 3, 32, 32, generator=generator)
    return texts, pixels


def prompts(texts, lengths, side="left"):
    """Write ids and mask, with as many placeholders for each image as `lengths` says."""
    lengths, rows = iter(lengths), []
    for pieces in texts:
        row = list(pieces[0])
        for piece in pieces[1:]:
            row += [IMAGE_TOKEN] * next(lengths) + piece
        rows.append(row)
    longest = max(map(len, rows))
    pads = [[PAD] * (longest - len(row)) for row in rows]
    ids = [pad + row if side == "left" else row + pad for pad, row in zip(pads, rows)]
    real = [[0] * len(pad) + [1] * len(row) for pad, row in zip(pads, rows)]
    mask = real if side == "left" else [row[::-1] for row in real]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def full_prompts(model, counts, side="left", seed=0):
    texts, pixels = conversation(counts, seed)
    return {**prompts(texts, [placeholders(model)] * sum(counts), side), "pixel_values": pixels}


def rows_by_themselves(model, counts, seed=0):
    """Yield each row's inputs for a plain model: the merged model's features, and as many placeholders."""
    texts, pixels = conversation(counts, seed)
    images = iter(pixels.split(1))
    for pieces in texts:
        own = [next(images) for _ in pieces[1:]]
        inputs = prompts([pieces], []) if not own else None
        if own:
            features = [model.get_image_features(image).pooler_output[0] for image in own]
            inputs = prompts([pieces], [len(rows) for rows in features])
            joined = torch.cat(features)
            as_tensor = "VipLlava" in type(model).__name__
            packed = BaseModelOutputWithPooling(pooler_output=joined[None] if as_tensor else [joined])
            inputs["mm_encoder_outputs"] = {"image": packed}
        yield inputs


def merged(config, *args, **kwargs):
    return apply(make(*args, **kwargs), config)


def plain(model):
    return remove(copy.deepcopy(model))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@every_config
@every_model
def test_every_model_generates_what_the_features_alone_give(name, tower, config, backend):
    model = merged(config, name, tower, backend)
    counts = [1, 2, 0]
    inputs = full_prompts(model, counts)
    out = model.generate(**inputs)
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    for row, alone in enumerate(rows_by_themselves(model, counts)):
        expected = plain(model).generate(**alone)[:, alone["input_ids"].shape[1] :]
        assert torch.equal(out[row : row + 1, inputs["input_ids"].shape[1] :], expected)
        if "mm_encoder_outputs" in alone:
            fewer = sum(alone["input_ids"][0] == IMAGE_TOKEN)
            assert 0 < fewer < sum(inputs["input_ids"][row] == IMAGE_TOKEN)


@pytest.mark.parametrize("side", ["left", "right"])
@every_config
@every_model
def test_logits_are_those_of_the_right_number_of_placeholders(name, tower, config, side):
    model = merged(config, name, tower)
    counts = [1, 2, 0]
    inputs = full_prompts(model, counts, side)
    logits = model(**inputs).logits
    for row, alone in enumerate(rows_by_themselves(model, counts)):
        expected = plain(model)(**alone).logits[0]
        length = len(expected)
        found = logits[row, -length:] if side == "left" else logits[row, :length]
        torch.testing.assert_close(found, expected, **CLOSE)


@every_config
def test_the_class_token_as_an_image_token(config):
    model = merged(config, vision_feature_select_strategy="full")
    inputs = full_prompts(model, [1, 2])
    assert (inputs["input_ids"] == IMAGE_TOKEN).sum() == 3 * 65
    logits = model(**inputs).logits
    for row, alone in enumerate(rows_by_themselves(model, [1, 2])):
        expected = plain(model)(**alone).logits[0]
        torch.testing.assert_close(logits[row, -len(expected) :], expected, **CLOSE)


@pytest.mark.parametrize("method", ["random_prune", "attention_prune", "kmeans", "greedy"])
def test_the_baselines(method):
    model = merged(MergeConfig(method=method, r=6))
    inputs = full_prompts(model, [1, 2])
    logits = model(**inputs).logits
    for row, alone in enumerate(rows_by_themselves(model, [1, 2])):
        expected = plain(model)(**alone).logits[0]
        torch.testing.assert_close(logits[row, -len(expected) :], expected, **CLOSE)
        assert (alone["input_ids"] == IMAGE_TOKEN).sum() == 46 * (row + 1)


@every_config
def test_the_model_without_its_head_shortens_as_well(config):
    model = merged(config)
    inputs = full_prompts(model, [2, 1])
    expected = model(**inputs, output_hidden_states=True).hidden_states[-1]
    bare = apply(plain(model).model, config)
    torch.testing.assert_close(bare(**inputs).last_hidden_state, expected, **CLOSE)


def labels_of(inputs):
    """Label all text but each row's first token, which padding in front would make a target and its absence not."""
    hidden = (inputs["input_ids"] == IMAGE_TOKEN) | (inputs["attention_mask"].cumsum(1) <= 1)
    return inputs["input_ids"].masked_fill(hidden | (inputs["attention_mask"] == 0), -100)


@every_config
@every_model
def test_labels_follow_their_tokens(name, tower, config):
    model = merged(config, name, tower)
    losses, weights = [], []
    for alone in rows_by_themselves(model, [1, 2]):
        labels = labels_of(alone)
        losses.append(plain(model)(**alone, labels=labels).loss)
        weights.append((labels[:, 1:] != -100).sum())
    expected = sum(loss * weight for loss, weight in zip(losses, weights)) / sum(weights)
    for side in ("left", "right"):
        inputs = full_prompts(model, [1, 2], side)
        torch.testing.assert_close(model(**inputs, labels=labels_of(inputs)).loss, expected, **CLOSE)


@every_model
def test_r0_is_bit_identical_and_remove_is_exact(name, tower):
    model = make(name, tower)
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    inputs = full_prompts(model, [1, 2])
    logits, tokens = model(**inputs).logits, model.generate(**inputs)
    for config in (MergeConfig(r=0), MergeConfig(method="mame", layers=[])):
        apply(model, config)
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs), tokens)
    apply(model, MergeConfig(r=6))
    assert model(**inputs).logits.shape[1] < logits.shape[1]
    assert list(model.state_dict()) == keys
    remove(model)
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(model.generate(**inputs), tokens)
    assert [type(module) for module in model.modules()] == classes
    assert not any(CONTEXT in module.__dict__ for module in model.modules())


def test_nothing_similar_enough_changes_nothing():
    model = make()
    inputs = full_prompts(model, [1, 2])
    expected = model(**inputs).logits
    apply(model, MergeConfig(method="mame", threshold=1.0))
    torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)


@every_config
@every_model
def test_saves_loads_pickles_and_copies(name, tower, config, tmp_path):
    model = merged(config, name, tower)
    inputs = full_prompts(model, [1, 2])
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    # transformers' own hooks for hidden states cannot be pickled once they are there, so before the first run.
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    expected = model(**inputs).logits
    for twin in twins:
        assert torch.equal(twin(**inputs).logits, expected)
        assert not any(is_patched(module) for module in remove(twin).modules())
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path).eval()
    assert type(loaded).__name__ == f"{name}ForConditionalGeneration"
    assert loaded.config.architectures == [f"{name}ForConditionalGeneration"]
    assert torch.equal(loaded(**inputs).logits, expected)
    unmerged = type(model).from_pretrained(tmp_path)
    assert not any(is_patched(module) for module in unmerged.modules())


GENERATION = {
    "beams": {"num_beams": 3},
    "beams, several": {"num_beams": 3, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "chunks": {"prefill_chunk_size": 7},
    "penalty": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("options", GENERATION.values(), ids=GENERATION.keys())
@every_config
@pytest.mark.parametrize("name", ["Llava", "VipLlava"])
def test_generation_modes(name, config, options):
    model = merged(config, name)
    inputs = full_prompts(model, [2, 1])
    out = model.generate(**inputs, **options)
    each = options.get("num_return_sequences", 1)
    prompt = inputs["input_ids"].repeat_interleave(each, 0)
    assert torch.equal(out[:, : prompt.shape[1]], prompt)
    for row, alone in enumerate(rows_by_themselves(model, [2, 1])):
        # One row expands rightly in VipLLaVA's own code as well, as all of its images are its own.
        expected = plain(model).generate(**alone, **options)[:, alone["input_ids"].shape[1] :]
        assert torch.equal(out[row * each : (row + 1) * each, prompt.shape[1] :], expected)


@every_config
def test_compiled_decoding(config):
    model = merged(config)
    inputs = full_prompts(model, [2, 1])
    options = CompileConfig(backend="eager", fullgraph=True, mode=None)
    options._compile_all_devices = True  # else on accelerators only
    torch._dynamo.reset()
    out = model.generate(**inputs, cache_implementation="static", compile_config=options)
    assert torch.equal(out, model.generate(**inputs))


@pytest.mark.parametrize("order", ["lora first", "merging first"])
def test_lora(order):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM", r=2)
    config = CONFIGS["tome"]
    model = make() if order == "lora first" else merged(config)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, lora).eval()
    inputs = full_prompts(model, [2, 1])
    apply(adapted, config)
    logits, tokens = adapted(**inputs).logits, adapted.generate(**inputs)
    folded = apply(remove(adapted).merge_and_unload(), config)
    torch.testing.assert_close(logits, folded(**inputs).logits, **CLOSE)
    assert torch.equal(tokens, folded.generate(**inputs))


@every_config
def test_hooks_of_accelerate(config):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    model = merged(config)
    inputs = full_prompts(model, [2, 1])
    logits, tokens = model(**inputs).logits, model.generate(**inputs)
    for module in model.modules():
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(model.generate(**inputs), tokens)
    hooked = make()  # as with a device map: hooks first
    for module in hooked.modules():
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    apply(hooked, config)
    assert torch.equal(hooked(**inputs).logits, logits)
    assert torch.equal(hooked.generate(**inputs), tokens)


@every_config
def test_sampling(config):
    model = merged(config)
    inputs = full_prompts(model, [1])
    (alone,) = rows_by_themselves(model, [1])
    torch.manual_seed(1)
    out = model.generate(**inputs, do_sample=True, num_return_sequences=3)
    torch.manual_seed(1)
    expected = plain(model).generate(**alone, do_sample=True, num_return_sequences=3)
    assert torch.equal(out[:, inputs["input_ids"].shape[1] :], expected[:, alone["input_ids"].shape[1] :])


@every_config
def test_right_padded_prompts_are_moved_to_the_right_end(config):
    # Plain transformers warns here, and goes on after the padding.
    model = merged(config)
    left, right = full_prompts(model, [1, 2], "left"), full_prompts(model, [1, 2], "right")
    length = left["input_ids"].shape[1]
    out = model.generate(**right)
    assert torch.equal(out[:, :length], right["input_ids"])
    assert torch.equal(out[:, length:], model.generate(**left)[:, length:])
    del left["attention_mask"]  # seen from the padding tokens
    assert torch.equal(out[:, length:], model.generate(**left)[:, length:])


@pytest.mark.parametrize("name", ["Llava", "VipLlava"])
@every_config
def test_embeddings_instead_of_ids(name, config):
    model = merged(config, name)
    inputs = full_prompts(model, [1, 2])
    by_ids, logits = model.generate(**inputs), model(**inputs).logits
    length = inputs["input_ids"].shape[1]
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    found = model(**inputs, inputs_embeds=embeds).logits
    for row, alone in enumerate(rows_by_themselves(model, [1, 2])):
        length_alone = alone["input_ids"].shape[1]  # padding differs, and nobody reads its logits
        torch.testing.assert_close(found[row, -length_alone:], logits[row, -length_alone:], **CLOSE)
    assert torch.equal(model.generate(**inputs, inputs_embeds=embeds), by_ids[:, length:])


@every_config
def test_features_made_beforehand(config):
    model = merged(config)
    inputs = full_prompts(model, [1, 2])
    expected, tokens = model(**inputs).logits, model.generate(**inputs)
    features = model.get_image_features(inputs.pop("pixel_values"))
    torch.testing.assert_close(model(**inputs, mm_encoder_outputs={"image": features}).logits, expected, **CLOSE)
    assert torch.equal(model.generate(**inputs, mm_encoder_outputs={"image": features}), tokens)


@every_config
def test_limits_streamers_and_criteria_see_the_prompt_as_passed(config):
    model = merged(config)
    inputs = full_prompts(model, [1])
    length = inputs["input_ids"].shape[1]
    expected = model.generate(**inputs, max_new_tokens=4)
    model.generation_config.max_new_tokens = None
    assert torch.equal(model.generate(**inputs, max_length=length + 4), expected)
    model.generation_config.max_new_tokens = 1  # which `None` takes back
    assert torch.equal(model.generate(**inputs, max_length=length + 4, max_new_tokens=None), expected)
    model.generation_config.max_new_tokens = None
    assert torch.equal(
        model.generate(**inputs, generation_config=tf.GenerationConfig(max_length=length + 4)), expected
    )

    class Streamer:
        def __init__(self):
            self.seen, self.ended = [], False

        def put(self, value):
            self.seen.append(value.flatten())

        def end(self):
            self.ended = True

    streamer, lengths = Streamer(), []

    def criterion(ids, scores, **kwargs):
        lengths.append(ids.shape[1])
        return torch.tensor([ids.shape[1] >= length + 4])

    def processor(ids, scores):
        assert torch.equal(ids[:, :length], inputs["input_ids"])
        return scores

    out = model.generate(
        **inputs,
        max_new_tokens=20,
        streamer=streamer,
        stopping_criteria=[criterion],
        logits_processor=[processor],
        prefix_allowed_tokens_fn=lambda row, ids: list(range(99)) if len(ids) >= length else [],
    )
    assert torch.equal(out, expected)
    assert torch.equal(torch.cat(streamer.seen), expected[0])
    assert streamer.ended
    assert lengths == [length + 1, length + 2, length + 3, length + 4]


@every_config
def test_assisted_decoding(config):
    model = merged(config)
    inputs = full_prompts(model, [1])
    expected = model.generate(**inputs)
    assert torch.equal(model.generate(**inputs, prompt_lookup_num_tokens=2), expected)
    assert torch.equal(model.generate(**inputs, assistant_model=plain(model)), expected)


@every_config
def test_a_conversation_goes_on_with_its_cache_and_without(config):
    model = merged(config)
    inputs = full_prompts(model, [2, 1])
    first = model.generate(**inputs, return_dict_in_generate=True)
    question = torch.tensor([[5, 6, 7], [8, 9, 10]])
    ids = torch.cat([first.sequences, question], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, NEW + 3, dtype=torch.int64)], dim=1)
    whole = model.generate(input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"])
    by_cache = model.generate(input_ids=ids, attention_mask=mask, **{CACHE: copy.deepcopy(first[CACHE])})
    assert torch.equal(by_cache, whole)
    # The last generated token is not in the cache yet, so it counts as new.
    only_new = model.generate(input_ids=ids[:, -4:], attention_mask=mask, **{CACHE: copy.deepcopy(first[CACHE])})
    assert torch.equal(only_new[:, 4:], whole[:, ids.shape[1] :])
    second = model.generate(input_ids=ids, attention_mask=mask, **{CACHE: first[CACHE]}, return_dict_in_generate=True)
    ids = torch.cat([second.sequences, question], dim=1)
    mask = torch.cat([mask, torch.ones(2, NEW + 3, dtype=torch.int64)], dim=1)
    third = model.generate(input_ids=ids, attention_mask=mask, **{CACHE: second[CACHE]})
    assert torch.equal(third, model.generate(input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"]))


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning")  # transformers 5.24, for its old name
def test_every_name_that_transformers_has_for_a_cache(name):
    model = merged(CONFIGS["tome"])
    inputs = full_prompts(model, [1])
    first = model.generate(**inputs, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    whole = model.generate(input_ids=ids, pixel_values=inputs["pixel_values"])
    assert torch.equal(model.generate(input_ids=ids, **{name: copy.deepcopy(first[CACHE])}), whole)
    new = model(input_ids=ids[:, -4:], **{name: copy.deepcopy(first[CACHE])}).logits[:, -1]
    torch.testing.assert_close(new, model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[:, -1], **CLOSE)
    filled = {name: first[CACHE], "pixel_values": inputs["pixel_values"]}
    for run in (model, model.generate):
        with pytest.raises(ValueError, match="new image"):
            run(input_ids=ids, **filled)


@every_config
def test_a_cache_of_the_callers_own(config):
    model = merged(config)
    inputs, cache = full_prompts(model, [1]), tf.DynamicCache()
    first = model.generate(**inputs, **{CACHE: cache})
    assert torch.equal(first, model.generate(**inputs))
    ids = torch.cat([first, torch.tensor([[5, 6]])], dim=1)
    whole = model.generate(input_ids=ids, pixel_values=inputs["pixel_values"])
    twin = copy.deepcopy(cache)
    assert torch.equal(model.generate(input_ids=ids, **{CACHE: cache}), whole)
    # What the cache remembers does not go with the config.
    assert torch.equal(apply(model, MergeConfig(r=0)).generate(input_ids=ids, **{CACHE: twin}), whole)


@every_config
def test_a_cache_that_is_reset_begins_anew(config):
    model = merged(config)
    inputs = full_prompts(model, [2])
    text = torch.tensor([[5, 6, 7, 8]])
    expected, plain = model.generate(**inputs), model.generate(text)
    cache = tf.StaticCache(model.config.get_text_config(), max_cache_len=200)
    for prompt, answer in ((inputs, expected), ({"input_ids": text}, plain), (inputs, expected)):
        assert torch.equal(model.generate(**prompt, **{CACHE: cache}), answer)
        cache.reset()


@every_config
def test_a_cache_made_of_the_tensors_of_another(config):
    model = merged(config)
    inputs = full_prompts(model, [1])
    first = model.generate(**inputs, return_dict_in_generate=True)
    copied = tf.DynamicCache([(layer.keys, layer.values) for layer in first[CACHE].layers])
    with pytest.raises(ValueError, match=r"placeholders after those.*the object that a call returned"):
        model.generate(input_ids=first.sequences, **{CACHE: copied})


@every_config
def test_a_loop_written_by_hand(config):
    model = merged(config)
    inputs = full_prompts(model, [2, 1])
    expected = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    mask, length = inputs["attention_mask"], inputs["input_ids"].shape[1]
    for positions in ("none", "as if unmerged", "shortened"):
        out, tokens, seen = model(**inputs, use_cache=True), [], mask
        for _ in range(NEW):
            tokens.append(out.logits[:, -1:].argmax(-1))
            seen = torch.cat([seen, torch.ones(2, 1, dtype=torch.int64)], dim=1)
            call = {"input_ids": tokens[-1], "attention_mask": seen, CACHE: out[CACHE]}
            if positions == "as if unmerged":
                call["position_ids"] = seen.sum(1, keepdim=True) - 1
            if positions == "shortened":
                dropped = (inputs["input_ids"] == IMAGE_TOKEN).sum(1) - image_tokens(model, inputs)
                call["position_ids"] = (seen.sum(1) - dropped - 1)[:, None]
            out = model(**call)
        assert torch.equal(torch.cat(tokens, dim=1), expected), positions
    with pytest.raises(ValueError, match=r"attention_mask.*columns.*merging shortened"):
        model(**{**call, "attention_mask": seen[:, : length - 1]})
    call[CACHE], call["attention_mask"] = out[CACHE], torch.cat([seen, seen[:, -1:]], dim=1)
    with pytest.raises(ValueError, match=r"position_ids.*begin at.*merging shortened"):
        model(**{**call, "position_ids": torch.tensor([[3], [3]])})


def image_tokens(model, inputs):
    """How many image tokens each row of [2, 1] images has after merging."""
    lengths = [len(rows) for rows in model.get_image_features(inputs["pixel_values"]).pooler_output]
    return torch.tensor([sum(lengths[:2]), lengths[2]])


def test_packed_sequences_keep_their_own_positions():
    model = merged(MergeConfig(r=6))
    one, two = full_prompts(model, [1], seed=1), full_prompts(model, [1], seed=2)
    ids = torch.cat([one["input_ids"], two["input_ids"]], dim=1)
    positions = torch.cat([torch.arange(one["input_ids"].shape[1]), torch.arange(two["input_ids"].shape[1])])[None]
    pixels = torch.cat([one["pixel_values"], two["pixel_values"]])
    packed = model(input_ids=ids, position_ids=positions, pixel_values=pixels, use_cache=False).logits
    apart = torch.cat([model(**one).logits, model(**two).logits], dim=1)
    torch.testing.assert_close(packed, apart, **CLOSE)


@torch.enable_grad()
@pytest.mark.parametrize("name", ["Llava", "VipLlava"])
@every_config
def test_gradients_with_and_without_checkpointing(config, name):
    model = merged(config, name).train()
    inputs = full_prompts(model, [1, 2])
    labels = labels_of(inputs)

    def gradients():
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    once = gradients()
    assert any("vision_tower" in name and grad.abs().max() > 0 for name, grad in once.items())
    checkpoint_activations(model)
    for name, grad in gradients().items():
        torch.testing.assert_close(grad, once[name], **CLOSE)


def test_blocks_behind_the_feature_layer_do_not_run():
    model = merged(MergeConfig(r=6))
    ran = []
    for index, layer in enumerate(model.model.vision_tower.encoder.layers):
        layer.self_attn.register_forward_hook(lambda *_, index=index: ran.append(index))
    model(**full_prompts(model, [1]))
    assert ran == [0, 1, 2]
    ran.clear()
    model.get_image_features(full_prompts(model, [1])["pixel_values"], output_hidden_states=True)
    model.model.vision_tower(full_prompts(model, [1])["pixel_values"])
    assert ran == [0, 1, 2, 3] * 2
    text = str(report(apply(model, MergeConfig(r=6))))
    assert "65 -> 59 -> 53 -> 47\n" in text
    assert "blocks 3 and later are skipped" in text
    assert "placeholders follow" in text


def test_several_feature_layers_hold_the_same_tokens():
    # A merged token's features in every layer are the mean of its members'; traced, layer by layer.
    model = merged(MergeConfig(r=6, trace=True), "VipLlava")
    pixels = full_prompts(model, [1])["pixel_values"]
    caught = []
    model.model.multi_modal_projector.register_forward_hook(lambda module, args, out: caught.append(args[0]))
    out = model.get_image_features(pixels, output_hidden_states=True)
    last, middle, early = caught[0].split(32, dim=-1)
    state = targets(model)[0].recorder.summary.state
    order = state.position[3][0].argsort()  # back in the image's own order
    assert torch.equal(last[0], out.hidden_states[3][0, order[1:]])
    for found, layer in ((middle, 2), (early, 1)):
        row_of = order.argsort()[trace_between(state, layer, 3)]
        size = state.size[layer][0]
        for row in range(1, found.shape[1] + 1):
            members = row_of == row
            mean = (out.hidden_states[layer][0, members] * size[members]).sum(0) / size[members].sum()
            torch.testing.assert_close(found[0, row - 1], mean, **CLOSE)
    assert trace(model).size.sum() == 65


def trace_between(state, first, last):
    step = torch.arange(state.tokens[first])
    for match in state.match[first:last]:
        step = match.source[0][step]
    return step


def test_restore_gives_the_language_model_all_tokens():
    model = merged(MergeConfig(r=6, restore=True))
    inputs = full_prompts(model, [1, 2])
    expected = plain(model)(**inputs).logits
    logits = model(**inputs).logits
    assert logits.shape == expected.shape
    assert not torch.allclose(logits, expected, atol=1e-4)
    assert "all tokens are unmerged after block 2" in str(report(model))


def model_length(model, **options):
    ids = torch.full((1, 64), IMAGE_TOKEN)
    return model(input_ids=ids, pixel_values=conversation([1])[1], **options).logits.shape[1]


def test_feature_layer_of_one_call():
    model = merged(MergeConfig(r=6))
    inputs = full_prompts(model, [1])
    for layer, tokens in ((-1, 40), (1, 58), (-3, 52)):
        assert (
            len(model.get_image_features(inputs["pixel_values"], vision_feature_layer=layer).pooler_output[0])
            == tokens
        )
        length = inputs["input_ids"].shape[1] - 64 + tokens
        assert model(**inputs, vision_feature_layer=layer).logits.shape[1] == length
        assert model.generate(**inputs, vision_feature_layer=layer).shape[1] == inputs["input_ids"].shape[1] + NEW
    vip = merged(MergeConfig(r=6), "VipLlava", vision_feature_layer=-2)
    assert model_length(vip, vision_feature_layer=-1) == model_length(vip, vision_feature_layers=-1) == 40
    assert len(vip.model.get_image_features(inputs["pixel_values"], vision_feature_layers=1).pooler_output[0]) == 58
    with pytest.raises(ValueError, match=r"vision_feature_layer.*\[7\].*hidden states 0 to 4"):
        model(**inputs, vision_feature_layer=7)
    late = merged(MergeConfig(r=6, layers=[2, 3]))
    with pytest.raises(ValueError, match=r"merges in blocks \[2, 3\] only.*before block 1"):
        late.generate(**inputs, vision_feature_layer=1)


BAD = {
    "too few placeholders": (lambda x: {"input_ids": x["input_ids"][:, 1:]}, r"\[63\] image placeholders.*1 image"),
    "no placeholder": (
        lambda x: {"input_ids": x["input_ids"].clamp(max=IMAGE_TOKEN - 1)},
        r"\[0\] image placeholders.*Write one image token",
    ),
    "one image for two": (
        lambda x: {"pixel_values": x["pixel_values"].repeat(2, 1, 1, 1)},
        r"\[64\] image placeholders, but 2 image.*128 in all",
    ),
    "an image of the wrong size": (lambda x: {"pixel_values": x["pixel_values"][..., :28]}, r"image size.*32"),
    "a mask of four dimensions": (
        lambda x: {"attention_mask": torch.ones(1, 1, x["input_ids"].shape[1], x["input_ids"].shape[1])},
        r"`attention_mask` is .*one entry for each token|must be 2D",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
@every_config
def test_bad_input(config, change, message):
    model = merged(config)
    texts, pixels = conversation([1])
    inputs = {**prompts([[[], texts[0][1]]], [64]), "pixel_values": pixels}
    inputs.update(change(inputs))
    if inputs["input_ids"].shape[1] < inputs["attention_mask"].shape[-1] and inputs["attention_mask"].ndim == 2:
        inputs["attention_mask"] = inputs["attention_mask"][:, 1:]
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=message):
            run(**inputs)


def test_images_twice_or_without_a_prompt():
    model = merged(MergeConfig(r=6))
    inputs = full_prompts(model, [1])
    features = model.get_image_features(inputs["pixel_values"])
    assert len(model.model.get_image_features(inputs["pixel_values"], return_dict=False)) == 1
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=r"`pixel_values` or the image in `mm_encoder_outputs`"):
            run(**inputs, mm_encoder_outputs={"image": features})
    with pytest.raises(ValueError, match=r"`input_ids` or `inputs_embeds`"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match=r"`logits_to_keep` is a tensor"):
        model(**inputs, logits_to_keep=torch.tensor([3]))
    assert model(**inputs, logits_to_keep=2).logits.shape[1] == 2
    assert len(model(**inputs, return_dict=False)[0]) == 1


def test_an_image_that_straddles_two_prompts():
    model = merged(MergeConfig(r=6))
    ids = torch.full((2, 64), IMAGE_TOKEN)
    ids[0, 0] = ids[1, 1:] = 5
    ids = torch.cat([ids, torch.full((2, 64), IMAGE_TOKEN)], dim=1)
    with pytest.raises(ValueError, match=r"whole images in each prompt"):
        model(input_ids=ids, pixel_values=conversation([3])[1])


def test_an_old_cache():
    model = merged(MergeConfig(r=6))
    inputs = full_prompts(model, [1])
    out = model.generate(**inputs, return_dict_in_generate=True)
    ids = torch.cat([out.sequences, inputs["input_ids"]], dim=1)
    for run in (model, model.generate):
        with pytest.raises(ValueError, match=rf"new image.*{CACHE}"):
            run(input_ids=ids, pixel_values=inputs["pixel_values"], **{CACHE: out[CACHE]})
    with pytest.raises(ValueError, match=r"do not begin with those prompts"):
        model.generate(input_ids=ids[:, 5:], **{CACHE: out[CACHE]})
    text = model.generate(input_ids=torch.tensor([[3, 4, 5]]), return_dict_in_generate=True)
    with pytest.raises(ValueError, match=rf"new image.*{CACHE}"):
        model.generate(
            input_ids=torch.cat([text.sequences, inputs["input_ids"]], dim=1),
            pixel_values=inputs["pixel_values"],
            **{CACHE: text[CACHE]},
        )


def test_a_feature_layer_before_any_merge():
    model = make(vision_feature_layer=1)
    with pytest.raises(ValueError, match=r"merges in blocks \[2, 3\] only.*before block 1.*vision_feature_layer"):
        apply(model, MergeConfig(r=4, layers=[2, 3]))
    with pytest.raises(ValueError, match=r"before the first block"):
        apply(make(vision_feature_layer=0), MergeConfig(r=4))
    assert not any(is_patched(module) for module in model.modules())
    apply(model, MergeConfig(r=4))


def test_the_first_token_is_protected_where_it_is_cut_off():
    model = merged(MergeConfig(r=6), "Llava", "siglip")
    with pytest.raises(ValueError, match=r"vision_feature_select_strategy.*'default'.*before `hf_tome.apply`"):
        model.get_image_features(torch.randn(1, 3, 32, 32), vision_feature_select_strategy="default")
    cropping = merged(MergeConfig(r=6), "Llava", "siglip", vision_feature_select_strategy="default")
    assert targets(cropping)[0].plan.num_prefix_tokens == 1
    assert len(cropping.get_image_features(torch.randn(1, 3, 32, 32)).pooler_output[0]) == 64 - 18 - 1


def processor():
    """A LLaVA processor with a tokenizer of one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": PAD, "<unk>": 1, **{f"w{i}": i for i in range(2, IMAGE_TOKEN)}, "<image>": IMAGE_TOKEN}
    words["what"] = words.pop("w2")
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for message in messages %} {{ message['role'] }} {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %} <image> {% else %} {{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    return tf.LlavaProcessor(
        tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        fast,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


@every_config
def test_pipeline_with_chat_messages(config, recwarn):
    image_module = pytest.importorskip("PIL.Image")
    pixels = (torch.rand(48, 40, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    image = image_module.fromarray(pixels)
    model, made = make(), processor()
    pipe = tf.pipeline("image-text-to-text", model=model, processor=made)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what w3 w4"}]
    messages = [{"role": "user", "content": content}]
    longer = [{"role": "user", "content": [{"type": "image", "image": image}, *content]}]
    unmerged = pipe(text=[messages, longer], max_new_tokens=4, batch_size=2)
    apply(pipe, MergeConfig(r=0))
    assert pipe(text=[messages, longer], max_new_tokens=4, batch_size=2) == unmerged
    assert apply(pipe, config) is pipe
    answer = pipe(text=messages, max_new_tokens=4)[0]["generated_text"]
    assert answer[:-1] == messages
    assert answer[-1]["role"] == "assistant"
    inputs = made.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    alone = model.generate(**inputs, max_new_tokens=4)[0, length:]
    assert answer[-1]["content"].split() == made.decode(alone, skip_special_tokens=True).split()
    both = pipe(text=[messages, longer], max_new_tokens=4, batch_size=2)
    assert both[0][0]["generated_text"][-1] == answer[-1]
    reply = [*answer, {"role": "user", "content": [{"type": "text", "text": "w5"}]}]
    assert len(pipe(text=reply, max_new_tokens=4)[0]["generated_text"]) == 4
    assert not [warning for warning in recwarn if "not supported" in str(warning.message)]

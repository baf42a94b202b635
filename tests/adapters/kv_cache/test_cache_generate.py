"""`generate` with merged caches: batches, beams, assistants, conversations, kinds of caches, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import transformers as tf
from decoders import as_cache, cache_of, decoder, prompt
from transformers import DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache
from transformers.generation.continuous_batching.cache import PagedAttentionCache

import hf_tome
from hf_tome import MergeConfig, UnsupportedModelError, apply, remove, report
from hf_tome.adapters.kv_cache.layers import layer as cache_layer
from hf_tome.adapters.kv_cache.layers.layer import MergingLayer
from hf_tome.adapters.kv_cache.merge_cache import merge_cache

HALF = MergeConfig(where="cache", keep_ratio=0.5, size="fitted")
CONFIGS = {
    "count": MergeConfig(where="cache", keep_ratio=0.5),
    "fitted": HALF,
    "quarter": MergeConfig(where="cache", keep_ratio=0.25, size="fitted", protect=(2, 8)),
    "causal": MergeConfig(where="cache", keep_ratio=0.6, causal=True),
    "keydiff": MergeConfig(where="cache", keep_ratio=0.3, destinations="keydiff", size="fitted", protect=(2, 8)),
    "keydiff causal": MergeConfig(where="cache", keep_ratio=0.5, destinations="keydiff", causal=True),
    "mame": MergeConfig(where="cache", method="mame", keep_ratio=0.5, causal=True),
    "mame threshold": MergeConfig(where="cache", method="mame", threshold=0.5, causal=True),
    "mame keydiff": MergeConfig(where="cache", method="mame", keep_ratio=0.5, destinations="keydiff"),
    "random": MergeConfig(where="cache", method="random_prune", keep_ratio=0.5),
    "recent": MergeConfig(where="cache", method="recent_prune", keep_ratio=0.25, protect=(2, 8)),
    "attended": MergeConfig(where="cache", method="attention_prune", keep_ratio=0.5),
    "distinctive": MergeConfig(where="cache", method="keydiff_prune", keep_ratio=0.5),
    "k-means": MergeConfig(where="cache", method="kmeans", keep_ratio=0.5),
    "greedy": MergeConfig(where="cache", method="greedy", keep_ratio=0.5),
    "one layer": MergeConfig(where="cache", keep_ratio=0.5, layers=[1]),
}
GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}


def generate(model, ids, **more):
    return model.generate(ids, **{**GREEDY, **more})


@torch.no_grad()
def run(model, ids, cache=None, **more):
    return model(ids, use_cache=True, **({} if cache is None else as_cache(model, cache)), **more)


@pytest.fixture(scope="module")
def llama():
    return decoder()


@pytest.fixture(autouse=True)
def unmerged(llama):
    yield
    remove(llama)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_prompt_keeps_its_bits_and_the_cache_shrinks(llama, name):
    ids = prompt(100)
    plain = run(llama, ids)
    apply(llama, CONFIGS[name])
    merged = run(llama, ids)
    assert torch.equal(merged.logits, plain.logits)
    layers = cache_of(merged).layers
    config = CONFIGS[name]
    for index, layer in enumerate(layers):
        assert layer.seen == layer.get_seq_length() == 100
        if config.layers is not None and index not in config.layers:
            assert layer.num_stored == 100
        elif config.keep_ratio is not None:
            assert layer.num_stored == int(100 * config.keep_ratio)
        else:
            assert layer.num_stored < 100
    first, last = config.protect
    stored, full = layers[1], cache_of(plain).layers[1]
    assert torch.equal(stored.keys[:, :, :first], full.keys[:, :, :first])
    assert torch.equal(stored.keys[:, :, -last:], full.keys[:, :, -last:])
    assert torch.equal(stored.values[:, :, -last:], full.values[:, :, -last:])
    follow = run(llama, prompt(3, seed=1), cache_of(merged))  # several queries, and lengths that differ by layer
    assert torch.isfinite(follow.logits).all()
    assert generate(llama, ids).shape == (1, 106)


@pytest.mark.parametrize("name", ["count", "quarter", "mame"])
def test_sizes_sum_to_the_tokens(llama, name):
    apply(llama, MergeConfig.from_dict({**CONFIGS[name].to_dict(), "size": "count"}))
    layer = cache_of(run(llama, prompt(100))).layers[0]
    assert torch.allclose(layer.sizes.sum(dim=2), torch.tensor(100.0))
    assert layer.positions.diff(dim=2).gt(0).all()


def test_fitted_sizes_keep_the_attention_of_the_members(llama):
    """The queries that sizes are fitted to pay merged entries what they paid their members."""
    apply(llama, MergeConfig.from_dict({**HALF.to_dict(), "protect": (1000, 0)}))  # reads, and merges nothing
    cache = cache_of(run(llama, prompt(100)))
    plain, sampled = copy.deepcopy(cache.layers[1]), cache.layers[1].sampled
    apply(llama, HALF)
    layer = merge_cache(llama, cache).layers[1]
    assert layer.num_stored == 50
    assert layer.sampled.shape[2] < sampled.shape[2]  # fewer stay for what merges later
    from hf_tome.adapters.kv_cache.layers.attended import FutureQueries, Turning

    turning = Turning(llama.model.rotary_emb.inv_freq, interleaved=False)
    future = FutureQueries.at(sampled, 2, torch.tensor([99]), turning, 8**-0.5, None)
    before, total = future.mass(cache_layer.Entries(plain.keys, plain.values, torch.ones(1, 2, 100), None))
    after = (future.logits(layer.keys) - total).exp().mean(dim=2) * layer.sizes
    assert torch.allclose(after.sum(dim=2), before.sum(dim=2), atol=1e-4)
    assert torch.allclose(before.sum(dim=2), torch.ones(1, 2), atol=1e-5)


@pytest.mark.parametrize("name", ["fitted", "quarter", "mame threshold", "random", "one layer"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_rows_of_a_batch_fare_as_if_alone(llama, name, backend):
    llama.set_attn_implementation(backend)
    apply(llama, CONFIGS[name])
    rows = [prompt(length, seed=length) for length in (70, 100, 39, 100)]
    ids = torch.zeros(4, 100, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, 100 - row.shape[1] :] = row
        mask[at, 100 - row.shape[1] :] = 1
    together = generate(llama, ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True)
    for at, row in enumerate(rows):
        alone = generate(llama, row, return_dict_in_generate=True, output_logits=True)
        assert torch.equal(alone.sequences[0, -6:], together.sequences[at, -6:])
        for one, other in zip(alone.logits, together.logits):
            assert torch.allclose(one[0], other[at], atol=2e-4)
    llama.set_attn_implementation("sdpa")


def test_padding_at_the_end_is_refused(llama):
    apply(llama, HALF)
    mask = torch.ones(2, 80, dtype=torch.int64)
    mask[1, -5:] = 0
    with pytest.raises(ValueError, match=r"padding behind real tokens.*padding_side = 'left'"):
        run(llama, prompt(80, rows=2), attention_mask=mask)


def test_keep_1_gives_the_same_bits(llama):
    ids = prompt(60)
    plain = generate(llama, ids, return_dict_in_generate=True, output_logits=True)
    apply(llama, MergeConfig(where="cache", keep_ratio=1.0))
    merged = generate(llama, ids, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(torch.stack(plain.logits), torch.stack(merged.logits))
    assert "nothing merges: every entry stays" in str(report(llama))


def test_a_short_prompt_keeps_its_bits_and_report_says_so(llama):
    ids = prompt(30)
    plain = generate(llama, ids, return_dict_in_generate=True, output_logits=True)
    apply(llama, HALF)
    merged = generate(llama, ids, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(torch.stack(plain.logits), torch.stack(merged.logits))
    assert "nothing merged: 35 tokens were seen, and the first 4 and the last 32 never merge" in str(report(llama))


def test_report_tells_entries_and_bytes(llama):
    apply(llama, MergeConfig(where="cache", keep_ratio=0.5))
    assert "no prompt has been read yet" in str(report(llama))
    output = run(llama, prompt(200))
    found = report(llama).towers[0]
    assert {(entries.seen, entries.stored) for entries in found.cached.values()} == {(200, 100)}
    layer = cache_of(output).layers[0]
    tensors = (layer.keys, layer.values, layer.sizes, layer.positions)
    assert found.cached[0].bytes_stored == sum(x.numel() * x.element_size() for x in tensors)
    assert found.cached[0].bytes_seen == 2 * 200 * 2 * 8 * 4
    assert "2 layers: 200 -> 100 entries" in str(found)
    assert "cached" in report(llama).to_dict()["towers"][0]


def test_remove_is_exact(llama):
    ids, classes = prompt(60), [type(module) for module in llama.modules()]
    plain = run(llama, ids)
    apply(llama, HALF)
    run(llama, ids)
    remove(llama)
    assert [type(module) for module in llama.modules()] == classes
    assert torch.equal(run(llama, ids).logits, plain.logits)
    assert not any(isinstance(layer, MergingLayer) for layer in cache_of(run(llama, ids)).layers)


def test_a_merged_cache_needs_a_merging_model(llama):
    apply(llama, HALF)
    cache = cache_of(run(llama, prompt(80)))
    remove(llama)
    with pytest.raises(RuntimeError, match="filled by a model with merging"):
        run(llama, prompt(1), cache)


def test_the_tail_merges_where_it_grows_long(llama, monkeypatch):
    monkeypatch.setattr(cache_layer, "TAIL_LIMIT", 20)
    apply(llama, MergeConfig(where="cache", keep_ratio=0.5, protect=(2, 8), size="fitted"))
    output = generate(llama, prompt(60), max_new_tokens=60, return_dict_in_generate=True)
    layer = cache_of(output).layers[0]
    assert layer.seen == 119
    assert layer.num_stored <= 60 + 20 + 8
    assert layer.num_stored - layer.settled <= 20 + 8
    cache = cache_of(run(llama, prompt(60)))
    for part in range(4):  # a conversation whose turns are longer than the limit
        cache = cache_of(run(llama, prompt(40, seed=part), cache))
    assert cache.layers[0].seen == 220
    assert cache.layers[0].num_stored == 110


@pytest.mark.parametrize("name", ["quarter", "random"])
def test_tokens_are_appended_in_place(llama, name):
    """Behind merged entries; with gradients on, where older tensors may be needed, they are copied as before."""
    apply(llama, CONFIGS[name])
    ids, more = prompt(100, rows=2), prompt(30, rows=2, seed=1)
    cache = cache_of(run(llama, ids))
    copied = copy.deepcopy(cache)
    held, storages = None, set()
    for at in range(30):
        logits = run(llama, more[:, at : at + 1], cache).logits
        expected = llama(more[:, at : at + 1], use_cache=True, **as_cache(llama, copied)).logits.detach()
        assert torch.allclose(logits, expected, atol=1e-5 * expected.abs().max().item())
        layer = cache.layers[0]
        storages.add(layer.keys.untyped_storage().data_ptr())
        if at == 9:
            held = copy.deepcopy(cache)
    for layer, other in zip(cache.layers, copied.layers):
        for tensor in ("keys", "values", "sizes", "positions"):
            assert torch.allclose(getattr(layer, tensor), getattr(other, tensor), atol=1e-5)
    assert len(storages) == 2  # room for 16 more
    before = cache.layers[0].keys.clone()
    run(llama, more[:, :1], held)
    assert torch.equal(cache.layers[0].keys, before)  # what a copy appends does not reach the other
    with torch.inference_mode():
        run(llama, more[:, :1], cache)
    assert torch.isfinite(run(llama, more[:, :1], cache).logits).all()


def test_beams_and_repeated_rows(llama):
    apply(llama, HALF)
    ids = prompt(80, rows=2)
    assert generate(llama, ids, num_beams=3).shape == (2, 86)
    assert generate(llama, ids, num_beams=2, num_return_sequences=2).shape == (4, 86)
    cache = cache_of(run(llama, ids))
    twin, swapped, one = (copy.deepcopy(cache) for _ in range(3))
    twin.batch_repeat_interleave(2)
    swapped.reorder_cache(torch.tensor([1, 0]))
    one.batch_select_indices(torch.tensor([1]))
    token = prompt(1, rows=2, seed=3)
    plain = run(llama, token, cache).logits
    assert torch.allclose(run(llama, token.repeat_interleave(2, 0), twin).logits[::2], plain, atol=1e-5)
    assert torch.allclose(run(llama, token.flip(0), swapped).logits.flip(0), plain, atol=1e-5)
    assert torch.allclose(run(llama, token[1:], one).logits, plain[1:], atol=1e-5)


def test_assisted_decoding_gives_the_same_tokens(llama):
    apply(llama, MergeConfig(where="cache", keep_ratio=0.5, protect=(2, 8), size="fitted"))
    # No token of the prompt repeats, so there are no candidates yet where it is read; they would see all of it.
    ids = torch.randperm(58, generator=torch.Generator().manual_seed(0))[None, :50] + 3
    alone = generate(llama, ids, max_new_tokens=24)
    assert alone[0, 50:].unique().numel() < 24  # later there are some
    assert torch.equal(generate(llama, ids, max_new_tokens=24, prompt_lookup_num_tokens=5), alone)
    assistant = decoder(num_hidden_layers=1)
    assert generate(llama, ids, max_new_tokens=24, assistant_model=assistant).shape == (1, 74)


def test_crop_takes_back_the_tail_alone(llama):
    apply(llama, HALF)
    cache = cache_of(run(llama, prompt(80)))
    before = copy.deepcopy(cache)
    run(llama, prompt(5, seed=2), cache)
    cache.crop(-5)
    token = prompt(1, seed=3)
    assert torch.equal(run(llama, token, cache).logits, run(llama, token, before).logits)
    with pytest.raises(RuntimeError, match=r"50 tokens are to be taken back.*protect"):
        cache.crop(-50)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(run(llama, prompt(80), cache).logits, run(llama, prompt(80)).logits)


def test_a_conversation_goes_on(llama):
    apply(llama, HALF)
    ids = prompt(80)
    first = generate(llama, ids, return_dict_in_generate=True)
    whole = torch.cat([first.sequences, prompt(10, seed=5)], dim=1)
    again = copy.deepcopy(cache_of(first))
    second = generate(llama, whole, **as_cache(llama, cache_of(first)))
    assert second.shape == (1, 102)
    rest = whole[:, again.get_seq_length() :]  # the same turn by hand
    logits = run(llama, rest, again).logits[:, -1]
    assert int(logits.argmax()) == int(second[0, 96])


def test_a_cache_that_was_filled_before_merges_in_the_next_call(llama):
    cache = cache_of(run(llama, prompt(80)))
    apply(llama, HALF)
    run(llama, prompt(4, seed=1), cache)
    assert cache.layers[0].num_stored == 42


@pytest.mark.slow
def test_flex_attention_reads_sizes(llama):
    ids, more, mask = prompt(80, rows=2), prompt(3, rows=2, seed=1), torch.ones(2, 80, dtype=torch.int64)
    mask[0, :9] = 0
    logits = []
    for backend in ("sdpa", "flex_attention"):
        llama.set_attn_implementation(backend)
        apply(llama, HALF)
        cache = cache_of(run(llama, ids, attention_mask=mask))
        logits.append(run(llama, more, cache, attention_mask=torch.nn.functional.pad(mask, (0, 3), value=1)).logits)
    llama.set_attn_implementation("sdpa")
    assert torch.allclose(*logits, atol=1e-4)


def test_the_language_model_of_a_vision_language_model():
    text = decoder().config
    vision = tf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = tf.LlavaForConditionalGeneration(tf.LlavaConfig(vision_config=vision, text_config=text)).eval()
    apply(model, HALF)
    ids = prompt(100).clamp(max=30)
    cache = cache_of(run(model, ids))
    assert [layer.num_stored for layer in cache.layers] == [50, 50]
    assert report(model).towers[0].path == "model.language_model"
    assert generate(model, ids).shape == (1, 106)


def test_sliding_layers_are_left_alone():
    model = apply(decoder("Gemma3"), HALF)
    cache = cache_of(run(model, prompt(100)))
    assert [type(layer).__name__ for layer in cache.layers] == ["DynamicSlidingWindowLayer", "MergingLayer"]
    assert cache.layers[1].num_stored == 50
    assert "1 of 2 layers keep their entries" in str(report(model))
    assert generate(model, prompt(100)).shape == (1, 106)
    with pytest.raises(UnsupportedModelError, match=r"DynamicCache\(config=model.config\)"):
        run(model, prompt(80), DynamicCache())
    with pytest.raises(UnsupportedModelError, match="only a window of 16 entries"):
        apply(decoder("Mistral", sliding_window=16), HALF)


def test_other_caches_are_refused(llama):
    apply(llama, HALF)
    with pytest.raises(UnsupportedModelError, match="StaticCache cannot merge: its tensors keep their full length"):
        generate(llama, prompt(80), cache_implementation="static", disable_compile=True)
    with pytest.raises(UnsupportedModelError, match="StaticCache"):
        run(llama, prompt(80), StaticCache(config=llama.config, max_cache_len=100))
    cache = DynamicCache()  # made without a config, as is fine where all layers are alike
    run(llama, prompt(80), cache)
    assert cache.layers[1].num_stored == 40


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (QuantizedCache, "stored quantised, and would be quantised again"),
        (PagedAttentionCache, "blocks are shared among requests"),
        (EncoderDecoderCache, "it belongs to an encoder-decoder"),
    ],
)
def test_attention_refuses_a_cache_of_another_kind(llama, kind, why):
    """Whatever calls it: caches that cannot be made here, without their packages or a GPU, have no content."""
    attention = apply(llama, HALF).model.layers[0].self_attn
    hidden, positions = torch.zeros(1, 4, 32), torch.arange(4)[None]
    turned = llama.model.rotary_emb(hidden, positions)
    with pytest.raises(UnsupportedModelError, match=f"a {kind.__name__} cannot merge: .*{why}.*DynamicCache"):
        attention(hidden, position_embeddings=turned, attention_mask=None, **as_cache(llama, object.__new__(kind)))


@pytest.mark.skipif(torch.__version__ < "2.9", reason="Dynamo of torch 2.8 fails in transformers' own code before")
def test_compiled_caches_that_grow_are_refused(llama):
    model = torch.compile(apply(llama, HALF), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="changes its length, which a compiled graph would be compiled anew for"):
        run(model, prompt(80))


def test_other_models_are_refused():
    vit = tf.ViTModel(tf.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(UnsupportedModelError, match="does not generate text, so it keeps no keys and values"):
        apply(vit, HALF)
    gpt = tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9))
    with pytest.raises(UnsupportedModelError, match="GPT2Model cannot merge: its positions are embedded"):
        apply(gpt, HALF)


def test_bad_configs(llama):
    with pytest.raises(ValueError, match="`keep_ratio` is 0; it takes None, or a number above 0"):
        MergeConfig(where="cache", keep_ratio=0)
    assert "set `keep_ratio`" in str(report(apply(llama, MergeConfig(where="cache"))))
    with pytest.raises(ValueError, match="`size` is 'fitted', but it means nothing to method 'random_prune'"):
        MergeConfig(where="cache", method="random_prune", keep_ratio=0.5, size="fitted")
    with pytest.raises(ValueError, match="'recent_prune' means something with `where` 'cache' alone"):
        MergeConfig(method="recent_prune", r=4)
    llama.set_attn_implementation("sdpa")
    llama.config._attn_implementation = "paged|sdpa"
    with pytest.raises(UnsupportedModelError, match="how the sizes of merged entries could reach it is not known"):
        apply(llama, HALF)
    llama.config._attn_implementation = "sdpa"


def test_bfloat16(llama):
    model = apply(copy.deepcopy(llama).to(torch.bfloat16), HALF)
    layer = cache_of(run(model, prompt(100))).layers[0]
    assert layer.keys.dtype == torch.bfloat16
    assert layer.sizes.dtype == torch.float32
    assert generate(model, prompt(100)).shape == (1, 106)


def test_offloading_carries_everything(llama):
    apply(llama, HALF)
    cache = cache_of(run(llama, prompt(80)))
    for layer in cache.layers:
        layer.offload()
        assert {x.device.type for x in (layer.keys, layer.sizes, layer.positions, layer.sampled)} == {"cpu"}
        layer.prefetch()
    assert torch.isfinite(run(llama, prompt(1), cache).logits).all()


def test_copies_and_pickles_merge(llama):
    apply(llama, HALF)
    ids = prompt(80)
    expected = generate(llama, ids)
    for other in (copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))):
        assert torch.equal(generate(other, ids), expected)
    assert hf_tome.get_config(llama) == HALF
    assert all("rotary_emb" not in name or name.startswith("model.rotary_emb") for name, _ in llama.named_modules())


def test_without_a_cache_nothing_changes(llama):
    ids = prompt(80)
    with torch.no_grad():
        plain = llama(ids, use_cache=False).logits
        assert torch.equal(apply(llama, HALF)(ids, use_cache=False).logits, plain)

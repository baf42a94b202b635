"""Every row: keys lose their positions, queries are those of the model, and duplicates merge without a trace."""

from __future__ import annotations

import sys

import pytest
import torch
from decoders import DECODERS, as_cache, decoder, prompt
from transformers import DynamicCache

from hf_tome import MergeConfig, apply, remove
from hf_tome.adapters.kv_cache.families import FAMILIES
from hf_tome.adapters.kv_cache.layers.layer import MergingLayer
from hf_tome.adapters.kv_cache.layers.rotary import rotate
from hf_tome.api import targets
from hf_tome.patching.patch import context_of, is_patched

pytestmark = pytest.mark.parametrize("family", DECODERS)
CONFIG = MergeConfig(where="cache", keep_ratio=0.5, protect=(2, 4), size="fitted")


def patched(model):
    return [module for module in model.modules() if is_patched(module)]


def recorded(model, ids, monkeypatch):
    """Run a prompt, and return what each attention was called with, and its queries and keys after RoPE."""
    calls = []
    attention = patched(model)[0]
    own = sys.modules[type(attention).__module__]

    def record(module, query, key, value, mask, **kwargs):
        calls.append((module, query, key))
        return original(module, query, key, value, mask, **kwargs)

    original = own.eager_attention_forward
    monkeypatch.setattr(own, "eager_attention_forward", record)
    hidden = {}
    for module in patched(model):
        module.register_forward_pre_hook(
            lambda module, args, kwargs: hidden.update({module: kwargs.get("hidden_states", *args[:1])}),
            with_kwargs=True,
        )
    model.set_attn_implementation("eager")
    with torch.no_grad():
        model(ids)
    return [(module, hidden[module], query, key) for module, query, key in calls if module in hidden]


def test_every_row_is_tested(family):
    names = {f"{name}Model" if name != "Gemma3" else "Gemma3TextModel" for name in DECODERS}
    assert names == set(FAMILIES)


def test_keys_and_queries_before_rope(family, monkeypatch):
    model = apply(decoder(family), CONFIG)
    ids = prompt(24)
    calls = recorded(model, ids, monkeypatch)
    assert len(calls) == len(patched(model))
    positions = torch.arange(24)
    for attention, hidden, query, key in calls:
        detail = context_of(attention).detail
        turning = detail.turning(attention.config)
        with torch.no_grad():
            expected = detail.family.queries(attention, hidden)
        turned = rotate(expected, positions, turning.frequencies, turning.interleaved)
        assert torch.allclose(turned * turning.scale, query, atol=1e-4)
        # The same hidden state everywhere: without positions its keys are the same.
        assert turning.frequencies.numel() == 0 or not torch.allclose(key[:, :, 0], key[:, :, 1], atol=1e-2)
        back = turning.back(query, positions)
        assert torch.allclose(back, expected * turning.scale**2, atol=1e-4)


def test_duplicates_merge_without_a_trace(family):
    """Entries twice at one position, merged with log(size), attend as all of them do."""
    model = decoder(family)
    config = MergeConfig(where="cache", keep_ratio=0.5, protect=(0, 0))
    layers = apply(model, config) and targets(model)[0].plan.layers
    details = {context_of(module).index: context_of(module).detail for module in patched(model)}
    decoder_config = model.config.get_text_config()
    full, merging = DynamicCache(config=decoder_config), DynamicCache(config=decoder_config)
    generator = torch.Generator().manual_seed(1)
    for index, (plain, other) in enumerate(zip(full.layers, merging.layers)):
        keys, values = torch.randn(2, 1, decoder_config.num_key_value_heads, 7, 8, generator=generator)
        keys, values = keys.repeat_interleave(2, dim=2), values.repeat_interleave(2, dim=2)
        plain.update(keys, values)
        if index not in layers:
            other.update(keys, values)
            continue
        layer = MergingLayer.holding(plain, details[index].rule)
        layer.positions = (layer.positions // 2).contiguous()
        layer.padding = layer.lost = torch.zeros(1, dtype=torch.int64)
        call = type("Call", (), {"turning": details[index].turning(decoder_config)})()
        layer.merge(call)
        assert layer.num_stored == 7
        assert layer.sizes.eq(2).all()
        layer._is_new = False
        merging.layers[index] = layer
    token, position = prompt(1), torch.tensor([[14]])
    with torch.no_grad():
        merged = model(token, position_ids=position, **as_cache(model, merging)).logits
        plain = remove(model)(token, position_ids=position, **as_cache(model, full)).logits
    assert torch.allclose(merged, plain, atol=2e-5 * plain.abs().max().item())

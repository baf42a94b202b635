"""Sizes reach flash attention by extra channels; a stand-in for its kernel takes what the kernel takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from decoders import as_cache, cache_of, decoder, prompt
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_tome import MergeConfig, UnsupportedModelError, apply, remove

FLASH = "flash_attention_2"
CONFIGS = {
    "fitted": MergeConfig(where="cache", keep_ratio=0.5, size="fitted"),
    "count": MergeConfig(where="cache", keep_ratio=0.25, protect=(2, 8)),
    "evicted": MergeConfig(where="cache", keep_ratio=0.5, method="random_prune"),
}


def kernel(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attend causally, seen from the last key; a mask (B, K) of real tokens at most."""
    assert module.config._attn_implementation == FLASH  # by which the real function chooses its kernel
    num_queries, num_keys = query.shape[2], key.shape[2]
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)[None, None]
    if attention_mask is not None:
        assert attention_mask.shape == (query.shape[0], num_keys)
        # A query of padding attends to itself, where the kernel would leave it out.
        mask = (mask & attention_mask[:, None, None].bool()) | torch.eye(num_queries, num_keys, dtype=torch.bool)
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scaling).transpose(1, 2), None


@pytest.fixture
def flash(monkeypatch):
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, FLASH, kernel)


@torch.no_grad()
def logits(model, config, backend, mask):
    """Return the logits of three tokens, and then one, behind a merged prompt."""
    model.config._attn_implementation = backend
    apply(model, config)
    output = model(prompt(80, rows=2), attention_mask=mask, use_cache=True)
    found = [output.logits[:, -1:]]
    for number, length in enumerate((3, 1)):
        cache = cache_of(output)
        mask = F.pad(mask, (0, length), value=1)
        output = model(prompt(length, rows=2, seed=number), attention_mask=mask, **as_cache(model, cache))
        found.append(output.logits)
    remove(model)
    model.config._attn_implementation = "sdpa"
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize("family", ["Llama", "Olmo"])
def test_sizes_reach_flash_attention(name, padding, family, flash):
    model = decoder(family)
    mask = torch.ones(2, 80, dtype=torch.int64)
    mask[0, :padding] = 0
    expected = logits(model, CONFIGS[name], "sdpa", mask)
    found = logits(model, CONFIGS[name], FLASH, mask)
    assert torch.allclose(found, expected, atol=2e-5 * expected.abs().max().item())


def test_layers_of_unequal_length(flash):
    config = MergeConfig(where="cache", keep_ratio=0.5, layers=[1])
    mask = torch.ones(2, 80, dtype=torch.int64)
    model = decoder()
    expected = logits(model, config, "sdpa", mask)
    assert torch.allclose(logits(model, config, FLASH, mask), expected, atol=2e-5 * expected.abs().max().item())


def test_bounded_logits_are_refused():
    model = decoder("Gemma2")
    model.config._attn_implementation = FLASH
    with pytest.raises(
        UnsupportedModelError, match=r"bounds its logits by a tanh.*set_attn_implementation\('eager'\)"
    ):
        apply(model, CONFIGS["count"])

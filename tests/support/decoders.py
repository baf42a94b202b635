"""Tiny random decoders of every family whose cache merges."""

from __future__ import annotations

import inspect

import torch
import transformers as tf

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24}
DECODERS: dict[str, dict] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Mixtral": {"sliding_window": None, **EXPERTS},
    "Qwen2": {"use_sliding_window": True, **MIXED},
    "Qwen3": {},
    "Qwen3Moe": EXPERTS,
    "Gemma": {},
    "Gemma2": {**MIXED, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, "attn_implementation": "eager"},
    "Gemma3": {**MIXED, "query_pre_attn_scalar": 8},
    "Phi": {"qk_layernorm": True, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "Phi3": {"sliding_window": None},
    "SmolLM3": {"no_rope_layers": [1, 0]},
    "Olmo": {"clip_qkv": 0.5},
    "Olmo2": {},
    "Glm": {"partial_rotary_factor": 0.5},
    "Glm4": {"partial_rotary_factor": 0.5},
    "Granite": {"attention_multiplier": 0.5},
    "Starcoder2": {"sliding_window": None},
}
"""By family, what its config has beside `TINY`."""


def decoder(family: str = "Llama", **fields: object) -> tf.PreTrainedModel:
    """Return a causal language model of random weights, large enough that attention is not nearly even."""
    torch.manual_seed(0)
    values = {**TINY, **DECODERS[family], **fields}
    backend = values.pop("attn_implementation", "sdpa")
    names = (f"{family}TextConfig", f"{family}Config")
    config = next(getattr(tf, name) for name in names if hasattr(tf, name))(**values)
    model = tf.AutoModelForCausalLM.from_config(config, attn_implementation=backend)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(6)
    return model.eval()


def prompt(length: int = 80, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Return random tokens, none of them special."""
    return torch.randint(3, TINY["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))


def as_cache(model: tf.PreTrainedModel, cache: tf.Cache) -> dict[str, tf.Cache]:
    """Return the argument by which a model takes a cache, whose name changes with transformers 5.24."""
    return {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}


def cache_of(output: object) -> tf.Cache:
    """Return the cache in a model's output."""
    return output["cache"] if "cache" in output else output["past_key_values"]

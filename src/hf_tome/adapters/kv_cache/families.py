"""The supported language models, one row each: what differs is how queries are made and how keys are turned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """A decoder of transformers whose layers are `layers.*.self_attn`, with one `rotary_emb` beside them.

    Attributes:
        name: class of the decoder, without its language modelling head.
        queries: makes queries before RoPE, (B, N, C) -> (B, Hq, N, D), of an attention module and hidden states.
        interleaved: whether the rotary embedding turns neighbouring channels; else those half of them apart.
        frequencies: the buffer of `rotary_emb` with the frequencies of full-attention layers.
    """

    name: str
    queries: Callable[[Any, Tensor], Tensor]
    interleaved: bool = False
    frequencies: str = "inv_freq"


def _heads(x: Tensor, head_dim: int) -> Tensor:
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)  # (B, N, Hq * D) -> (B, Hq, N, D)


def _projected(attention: Any, hidden: Tensor) -> Tensor:
    return _heads(attention.q_proj(hidden), attention.head_dim)


def _normed_heads(attention: Any, hidden: Tensor) -> Tensor:
    return attention.q_norm(_projected(attention, hidden))


def _normed_whole(attention: Any, hidden: Tensor) -> Tensor:
    return _heads(attention.q_norm(attention.q_proj(hidden)), attention.head_dim)


def _clipped(attention: Any, hidden: Tensor) -> Tensor:
    queries, limit = _projected(attention, hidden), attention.config.clip_qkv
    return queries if limit is None else queries.clamp(-limit, limit)


def _layer_normed(attention: Any, hidden: Tensor) -> Tensor:
    queries = _projected(attention, hidden)
    return attention.q_layernorm(queries) if attention.qk_layernorm else queries


def _first_of_fused(attention: Any, hidden: Tensor) -> Tensor:
    num_channels = attention.config.num_attention_heads * attention.head_dim
    weight, bias = attention.qkv_proj.weight[:num_channels], attention.qkv_proj.bias
    bias = None if bias is None else bias[:num_channels]
    return _heads(nn.functional.linear(hidden, weight, bias), attention.head_dim)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("LlamaModel", _projected),
        Family("MistralModel", _projected),
        Family("MixtralModel", _projected),
        Family("Qwen2Model", _projected),
        Family("Qwen3Model", _normed_heads),
        Family("Qwen3MoeModel", _normed_heads),
        Family("GemmaModel", _projected),
        Family("Gemma2Model", _projected),
        Family("Gemma3TextModel", _normed_heads, frequencies="full_attention_inv_freq"),
        Family("PhiModel", _layer_normed),
        Family("Phi3Model", _first_of_fused),
        Family("SmolLM3Model", _projected),
        Family("OlmoModel", _clipped),
        Family("Olmo2Model", _normed_whole),
        Family("GlmModel", _projected, interleaved=True),
        Family("Glm4Model", _projected, interleaved=True),
        Family("GraniteModel", _projected),
        Family("Starcoder2Model", _projected),
    )
}

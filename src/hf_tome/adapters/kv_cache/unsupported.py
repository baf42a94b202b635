"""Why entries of a cache, or in a model, cannot merge."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ...patching.patch import own_class
from .families import FAMILIES

COMPILED = (
    "A cache whose entries merge changes its length, which a compiled graph would be compiled anew for at each step, "
    "and compiled static caches have no room to merge in. Call the model uncompiled."
)
_GO_ON = "Leave the cache out, or pass `DynamicCache(config=model.config)`."
CACHES = {
    "StaticCache": "its tensors keep their full length, so merging entries would save nothing",
    "QuantizedCache": "its entries are stored quantised, and would be quantised again each time that they merge",
    "EncoderDecoderCache": "it belongs to an encoder-decoder",
    "PagedAttentionCache": "its blocks are shared among requests, which merging would change for all of them",
    "ContinuousBatchingCache": "its blocks are shared among requests, which merging would change for all of them",
    "MtpCache": "it is the drafts' own, a few entries long",
    "DFlashCache": "it is the drafts' own, a few entries long",
}
"""By class name of a cache, why its entries cannot merge."""


def why_no_cache(cache: Any) -> str | None:
    """Return why entries of a cache cannot merge; `None` where they can."""
    name = next((cls.__name__ for cls in type(cache).__mro__ if cls.__name__ in CACHES), None)
    if name is not None:
        return f"Entries of a {type(cache).__name__} cannot merge: {CACHES[name]}. {_GO_ON}"
    if not isinstance(cache, DynamicCache):
        return f"Entries of a {type(cache).__name__} cannot merge; known is how those of a DynamicCache do. {_GO_ON}"
    return None


MODELS = {
    "GPTNeoXModel": "its attention is not laid out as that of the supported models is",
    "GPT2Model": "its positions are embedded in the tokens, so that keys have no form without them",
    "OPTModel": "its positions are embedded in the tokens, so that keys have no form without them",
    "BloomModel": "its attention adds a bias of its own by position (ALiBi)",
    "MptModel": "its attention adds a bias of its own by position (ALiBi)",
    "FalconModel": "its attention is not laid out as that of the supported models is",
    "Qwen2VLTextModel": "its positions have three parts (multimodal RoPE)",
    "Qwen2_5_VLTextModel": "its positions have three parts (multimodal RoPE)",
    "Qwen3VLTextModel": "its positions have three parts (multimodal RoPE)",
    "DeepseekV2Model": "its cache holds compressed latents (multi-head latent attention)",
    "DeepseekV3Model": "its cache holds compressed latents (multi-head latent attention)",
    "GptOssModel": "its attention has sinks beside the keys",
    "MambaModel": "it has no cache of keys and values",
    "Mamba2Model": "it has no cache of keys and values",
    "JambaModel": "most of its layers have no cache of keys and values",
    "Llama4TextModel": "its layers attend in chunks, and scale queries by position",
    "Cohere2Model": "it has not been tried",
    "T5Model": "it is an encoder-decoder",
    "BartModel": "it is an encoder-decoder",
}
"""By class name of a model, why its cache cannot merge."""


def reason_of(root: nn.Module) -> str | None:
    """Return why no cache merges in a model."""
    supported = ", ".join(FAMILIES)
    for module in root.modules():
        name = own_class(module).__name__
        if name in MODELS:
            return f"The cache of a {name} cannot merge: {MODELS[name]}. Supported are {supported}."
    if not isinstance(root, PreTrainedModel):
        return None
    generates = bool(getattr(root, "can_generate", lambda: False)())
    why = "has no row yet" if generates else "does not generate text, so it keeps no keys and values"
    return f"A {own_class(root).__name__} {why}; the caches that merge are those of {supported}."

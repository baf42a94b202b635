"""Merge the entries of a cache that is filled already, between two calls."""

from __future__ import annotations

from typing import Any

import torch

from ...patching.patch import context_of, is_patched
from ...patching.unwrap import unwrap
from .attention import MergingAttention, softcap_of
from .layers.layer import Call, MergingLayer


def merge_cache(model: object, cache: Any) -> Any:
    """Merge what a model with merging has stored, by the config that it has now; returns the same cache.

    A prompt that was read once with `protect` longer than itself can so be merged in several ways, from copies of its
    cache. Sizes that are fitted need the queries that such a call keeps with `size="fitted"`.

    Raises:
        ValueError: the cache was not filled by a model with merging.
    """
    for attention in unwrap(model).modules():
        if not is_patched(attention) or not isinstance(attention, MergingAttention):
            continue
        detail, layer = context_of(attention).detail, cache.layers[attention.layer_idx]
        if not isinstance(layer, MergingLayer) or layer.num_stored == 0:
            raise ValueError(
                "The cache holds no entries that can merge. Call `hf_tome.apply(model, MergeConfig(where='cache', "
                "...))`, and read the prompt with that model."
            )
        layer.rule = detail.rule
        if not layer.rule.reads_queries:
            layer.sampled = None
        if layer.rule.merges:
            turning = detail.turning(attention.config)
            with torch.no_grad():
                layer.merge(Call(_NONE, None, turning, attention.scaling, softcap_of(attention), _no_queries))
    return cache


_NONE = torch.zeros(0)


def _no_queries(places: torch.Tensor) -> torch.Tensor:
    return _NONE

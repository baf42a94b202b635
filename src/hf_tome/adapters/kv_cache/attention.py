"""The patched attention of a language model: it gives its layer of the cache what merging takes, and reads sizes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from ...errors import UnsupportedModelError
from ...patching.patch import context_of
from .channels import BIAS, ChannelConfig
from .decisions import CacheDetail, CachePlan, entries_of
from .layers.layer import Call, MergingLayer
from .mask import CHANNEL_BACKENDS, check_backend, dense, real_columns, with_bias
from .unsupported import COMPILED, why_no_cache

CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What transformers calls the cache: from release 5.24 on, and before."""


class MergingAttention(ChannelConfig):
    """Attention whose entries in the cache merge."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attend; see the model's own attention."""
        caches = [kwargs[name] for name in CACHE_ARGUMENTS if kwargs.get(name) is not None]
        context = context_of(self)
        plan: Any = context.target.plan
        detail = context.detail
        if not caches or not plan.merges:
            return super().forward(hidden_states, *args, **kwargs)
        if torch.compiler.is_compiling():
            raise UnsupportedModelError(COMPILED)
        layer = merging_layer(caches[0], self.layer_idx, detail, plan)
        mask = dense(kwargs.get("attention_mask"), hidden_states.shape[1])
        layer.expect(self._call(hidden_states, kwargs, mask, layer, detail))
        with self._biased(layer, mask, hidden_states, kwargs):
            output = super().forward(hidden_states, *args, **kwargs)
        plan.keep(context.target.recorder, context.index, entries_of(layer))
        return output

    def _biased(
        self, layer: MergingLayer, mask: Tensor | None, hidden_states: Tensor, kwargs: dict[str, Any]
    ) -> AbstractContextManager[None]:
        """Let the call's attention read the sizes: by its mask in `kwargs`, or within the context that is returned."""
        num_new = hidden_states.shape[1]
        # A model makes one mask for all layers, by the length of the first.
        is_fitting = mask is not None and mask.shape[-1] == layer.num_stored + num_new
        bias = layer.bias(is_masked=is_fitting)
        backend = self.config._attn_implementation
        if bias is None and (mask is None or is_fitting):
            return nullcontext()
        check_backend(backend, softcap_of(self) is not None)
        bias = layer.zeros() if bias is None else bias
        if backend in CHANNEL_BACKENDS:
            kwargs["attention_mask"] = None
            return context_of(self).target.recorder.scoped(BIAS, bias)
        kwargs["attention_mask"] = with_bias(mask, bias, num_new, self.num_key_value_groups, hidden_states.dtype)
        return nullcontext()

    def _call(
        self, hidden_states: Tensor, kwargs: dict[str, Any], mask: Tensor | None, layer: MergingLayer, detail: Any
    ) -> Call:
        num_new = hidden_states.shape[1]
        positions = kwargs.get("position_ids")
        if positions is None or positions.ndim != 2 or positions.shape[1] != num_new:
            positions = torch.arange(num_new, device=hidden_states.device)[None] + layer.seen
        is_first = layer.padding is None
        real = real_columns(mask) if is_first else None
        if real is not None and real.shape[1] != layer.num_stored + num_new:
            raise ValueError(
                f"The attention mask has {real.shape[1]} columns for {layer.num_stored + num_new} tokens; pass one of "
                "two dimensions, (batch, tokens), from which the model makes its own."
            )

        def queries(places: Tensor) -> Tensor:
            chosen = hidden_states.gather(1, places[..., None].expand(-1, -1, hidden_states.shape[-1]))
            with torch.no_grad():
                return detail.family.queries(self, chosen)

        return Call(positions, real, detail.turning(self.config), self.scaling, softcap_of(self), queries)


def softcap_of(attention: Any) -> float | None:
    """Return the bound of the logits of an attention, as Gemma 2 has one."""
    return getattr(attention, "attn_logit_softcapping", None)


def merging_layer(cache: Any, index: int, detail: CacheDetail, plan: CachePlan) -> MergingLayer:
    """Return the merging layer of a cache, put in place of a plain one if need be.

    Raises:
        UnsupportedModelError: entries of this kind of cache cannot merge.
    """
    reason = why_no_cache(cache)
    if reason is not None:
        raise UnsupportedModelError(reason)
    layers = cache.layers
    if cache.layer_class_to_replicate is not None:
        if plan.has_other_layers:
            raise UnsupportedModelError(
                "Some layers of this model keep a window of their entries, and a cache made without the model's "
                "config does not know which. Pass `DynamicCache(config=model.config)`, or no cache."
            )
        while len(layers) <= index:
            layers.append(cache.layer_class_to_replicate())
    layer = layers[index]
    if isinstance(layer, MergingLayer):
        return layer
    if type(layer) is not DynamicLayer:
        raise UnsupportedModelError(f"Entries of a {type(layer).__name__} cannot merge; pass a DynamicCache.")
    layers[index] = MergingLayer.holding(layer, detail.rule)
    return layers[index]

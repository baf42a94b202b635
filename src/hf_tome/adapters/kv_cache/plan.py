"""Plan merging in the cache of one decoder."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from ...config import MergeConfig
from ...config.text import is_unmerged
from ...errors import UnsupportedModelError
from ...merging.methods import get_method
from ...patching.patch import own_class
from ...patching.plans import Patch, Target, check_blocks, check_forwards
from ...patching.recorder import Recorder
from .attention import MergingAttention, softcap_of
from .decisions import CacheDetail, CachePlan, uses_sizes
from .families import Family
from .mask import check_backend
from .rule import Rule


def plan_cache(path: str, module: Any, family: Family, config: MergeConfig) -> Target:
    """Plan merging in the cache of a decoder.

    Raises:
        UnsupportedModelError: sizes cannot reach its attention, or no layer keeps all entries.
        ValueError: the config does not fit.
    """
    attentions = [layer.self_attn for layer in module.layers]
    num_layers = len(attentions)
    check_blocks(attentions, "transformers")
    check_forwards(attentions)
    check_backend(module.config._attn_implementation, softcap_of(attentions[0]) is not None)
    kinds = [type(layer) for layer in DynamicCache(config=module.config).layers]
    kinds += [DynamicLayer] * (num_layers - len(kinds))
    full = [index for index, kind in enumerate(kinds) if kind is DynamicLayer]
    if not full:
        raise UnsupportedModelError(
            f"Every layer of this {own_class(module).__name__} keeps only a window of {module.config.sliding_window} "
            "entries, so its cache is bounded already. Entries merge in layers that keep all of them."
        )
    chosen = set(range(num_layers) if config.layers is None else config.merging_layers(num_layers))
    merging = tuple(index for index in full if index in chosen)
    merges = bool(merging) and not is_unmerged(config)
    patches = tuple(
        Patch(attentions[index], MergingAttention, index, _detail(module, family, config, index, index in chosen))
        for index in full
    )
    plan = CachePlan(config, merging, num_layers, len(full) < num_layers, merges)
    return Target(path, module, plan, Recorder(), patches=patches)


def _detail(module: nn.Module, family: Family, config: MergeConfig, index: int, merges: bool) -> CacheDetail:
    method, attention = get_method(config.method), module.layers[index].self_attn  # type: ignore[union-attr, index]
    fields = {**config.match_fields(method)}
    sizes = uses_sizes(config)
    rule = Rule(
        method=method,
        fields=fields,
        keep_ratio=config.keep_ratio if merges else 1.0,
        protect=config.protect,
        causal=config.causal,
        destinations=config.destinations,
        uses_sizes=sizes,
        fits_sizes=sizes and config.size == "fitted",
        seed=config.seed,
        layer=index,
        num_layers=len(module.layers),  # type: ignore[arg-type]
    )
    has_positions = bool(getattr(attention, "use_rope", True))
    return CacheDetail(family, rule, (module.rotary_emb,) if has_positions else ())

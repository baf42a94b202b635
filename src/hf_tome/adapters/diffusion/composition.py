"""What else of diffusers may be set on a merged denoiser: what its caches have to know, and what cannot work."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ...errors import UnsupportedModelError
from ...patching.patch import own_class, patched_class
from ...patching.plans import Patch
from .state import BlockDetail

SELF_ATTENTION_GUIDANCE = "CrossAttnStoreProcessor"
PERTURBED_ATTENTION = "PAG"


def register_for_caches(patches: Iterable[Patch]) -> None:
    """Tell diffusers' FirstBlockCache, MagCache and layer skip about patched blocks, which they know by class."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    for mixin, base in {(patch.mixin, own_class(patch.module)) for patch in patches}:
        try:
            metadata = TransformerBlockRegistry.get(base)
        except ValueError:  # no block, or one that these do not know either
            continue
        TransformerBlockRegistry.register(patched_class(mixin, base), copy.copy(metadata))


def check_arguments(arguments: Mapping[str, Any], modules: str) -> None:
    """Raise where an argument of the denoiser lays something out over the queries of a merged block.

    Raises:
        UnsupportedModelError: it says what to do.
    """
    if modules != "block":
        return
    for name in ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"):
        if (arguments.get(name) or {}).get("ip_adapter_masks") is not None:
            raise UnsupportedModelError(
                "`ip_adapter_masks` have an entry for each token of the picture, and blocks that merge as a whole "
                "have fewer tokens. Merge around self-attention alone, `MergeConfig(..., modules='attention')`, or "
                "leave the masks out."
            )


def check_processors(module: Any, detail: BlockDetail) -> None:
    """Raise where the processor of a merged self-attention reads the number of its queries, or splits its batch.

    Raises:
        UnsupportedModelError: it says what to do.
    """
    for attention in _attentions(module, detail):
        if detail.kind == "kv" and getattr(attention, "fused_projections", False):
            raise UnsupportedModelError(
                f"{detail.path!r} has queries, keys and values in one fused projection, so keys and values cannot "
                "merge alone. Call `unfuse_qkv_projections`, or use `MergeConfig(..., modules='attention')`."
            )
        name = type(getattr(attention, "processor", None)).__name__
        if name != SELF_ATTENTION_GUIDANCE and not name.startswith(PERTURBED_ATTENTION):
            continue
        reason = (
            "self-attention guidance lays its attention maps out on the grid of tokens"
            if name == SELF_ATTENTION_GUIDANCE
            else "perturbed-attention guidance changes the attention of a part of the batch"
        )
        raise UnsupportedModelError(
            f"{detail.path!r} merges tokens and has the processor {name}: {reason}, which merged tokens do not fit. "
            "Use classifier-free guidance, or leave this block out with `layers` or a larger `min_tokens`."
        )


def check_caches(block: Any, detail: BlockDetail) -> None:
    """Raise where a cache inside a block remembers its attention, and images run through the block one by one.

    Raises:
        UnsupportedModelError: it says what to do.
    """
    for module in block.modules():
        registry = None if module is block else getattr(module, "_diffusers_hook", None)
        for name, hook in getattr(registry, "hooks", {}).items():
            if hook._is_stateful:
                raise UnsupportedModelError(
                    f"{detail.path!r} runs its images one by one, because its positions have no batch, and the cache "
                    f"{name!r} inside it would give each image what it remembers of the one before. Pass images one "
                    "by one (guidance as two calls), or use a cache of whole blocks, as FirstBlockCache."
                )


def _attentions(module: Any, detail: BlockDetail) -> Iterable[nn.Module]:
    if detail.kind != "block":
        return (module,)
    return (attention for name in detail.call.attentions if (attention := getattr(module, name, None)) is not None)

"""Calls of models and of `generate`: arguments by name, and settings that may stand in several places."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..cache_names import CACHE_NAMES


def arguments(method: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name."""
    if not args:
        return dict(kwargs)
    bound = inspect.signature(method).bind(*args, **kwargs).arguments
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(parameter.name, {}))
    return dict(bound)


def has_images(call: dict[str, Any]) -> bool:
    """Return whether a call has images, as pixels or as features."""
    encoded = call.get("mm_encoder_outputs") or {}
    return call.get("pixel_values") is not None or encoded.get("image") is not None


def cache_argument(call: dict[str, Any]) -> Any:
    """Return the cache in a call, by whichever name it was passed; `None` if there is none."""
    for name in CACHE_NAMES:
        if name in call:
            return call[name]
    return None


def first(sources: Sequence[Any], name: str) -> Any:
    """Return the first value of a generation setting that is set: by argument (`None` too), config, or the model's."""
    for source in sources:
        if isinstance(source, dict) and name in source:
            return source[name]
        value = getattr(source, name, None)
        if value is not None:
            return value
    return None


def pad_token_id(model: Any, call: dict[str, Any]) -> int:
    """Return the token to pad with."""
    sources = (call, call.get("generation_config"), getattr(model, "generation_config", None), model.config)
    for name in ("pad_token_id", "eos_token_id"):
        value = first(sources, name)
        if value is not None:
            return int(value[0] if isinstance(value, (list, tuple)) else value)
    return 0  # never attended to


def inferred_mask(model: Any, ids: Tensor | None, call: dict[str, Any]) -> Tensor | None:
    """Return the mask that `generate` would make of padding tokens, where they cannot be ends of sequences as well."""
    sources = (call, call.get("generation_config"), model.generation_config)
    pad, eos = first(sources, "pad_token_id"), first(sources, "eos_token_id")
    if ids is None or not ids.numel() or pad is None or pad in (eos if isinstance(eos, (list, tuple)) else [eos]):
        return None
    return ids.ne(pad).long()

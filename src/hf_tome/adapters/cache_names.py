"""What transformers calls the cache of a language model, in calls and in outputs."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_NAMES = ("cache", "past_key_values") if hasattr(CausalLMOutputWithPast, "cache") else ("past_key_values",)
"""What transformers calls a cache in calls and outputs, the current name first: 5.24 renamed it and takes both."""
CACHE = CACHE_NAMES[0]


def cache_keyword(model: Any) -> str:
    """Return what a model's forward calls its cache."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[-1])


def cache_of(out: Any) -> Cache | None:
    """Return the cache in the output of a model or of `generate`, `None` for tensors and outputs without one."""
    values = out if isinstance(out, tuple) else [getattr(out, CACHE, None)]
    return next((value for value in values if isinstance(value, Cache)), None)

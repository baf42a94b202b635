"""What the installed transformers calls things that 5.24 renamed, for tests that run on 5.23 and 5.24."""

from __future__ import annotations

import torch
import transformers as tf
from packaging.version import Version
from transformers.modeling_outputs import CausalLMOutputWithPast

TORCH = Version(torch.__version__)
CACHE_NAMES = (
    ["past_key_values", "cache"] if "cache" in CausalLMOutputWithPast.__annotations__ else ["past_key_values"]
)
"""The names under which the installed transformers takes a cache."""
CACHE = CACHE_NAMES[-1]


def checkpoint_activations(model: tf.PreTrainedModel, **options: bool) -> None:
    """Switch on what transformers 5.23 calls gradient checkpointing, and 5.24 activation checkpointing."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options or None)

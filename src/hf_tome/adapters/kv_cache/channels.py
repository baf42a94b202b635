"""Sizes in flash attention, which takes no mask of numbers: they travel in extra channels of queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ...patching.patch import PatchedModule, context_of
from ..encoders.attention import with_bias_channel

ATTENTION = "hf_tome_sizes_in_channels"
"""What the attention function below is registered as; a model's own config never has it."""
BIAS = "bias of cached entries"
"""What the recorder calls the bias (B, H, N) of the call that runs."""


class ConfigInChannels:
    """A config that is as another one, but for the attention implementation."""

    _attn_implementation = ATTENTION

    def __init__(self, config: Any):
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


class ChannelConfig(PatchedModule):
    """Attention that looks its function up in its config: while a bias is set, it is led to the function below."""

    @property
    def config(self) -> Any:
        """The config of the module, see above."""
        config = self.__dict__["config"]
        return config if context_of(self).target.recorder.scope(BIAS) is None else ConfigInChannels(config)


def attend_with_channels(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend as the model's own implementation does, with the bias of the call in extra channels; see transformers."""
    recorder, head_dim = context_of(module).target.recorder, query.shape[-1]
    bias = recorder.scope(BIAS)
    new = bias.new_zeros((*bias.shape[:2], key.shape[2] - bias.shape[2]))
    query, key, value = with_bias_channel(query, key, value, torch.cat([bias, new], dim=-1), scaling)
    with recorder.scoped(BIAS, None):
        attend = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
        out, weights = attend(module, query, key, value, None, scaling=scaling, **kwargs)
    return out[..., :head_dim], weights


AttentionInterface.register(ATTENTION, attend_with_channels)

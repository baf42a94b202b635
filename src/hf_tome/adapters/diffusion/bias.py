"""How log(size) reaches the keys of an attention that somebody else wrote."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import UnsupportedModelError
from .state import KeyBias


class SizeBias(TorchFunctionMode):
    """Adds a bias to the keys of the self-attention that is computed meanwhile.

    diffusers' processors have many forms, and few of them take a mask, but all default ones end in PyTorch's
    `scaled_dot_product_attention`. Calls in which queries and keys differ in number (adapters of images, text) pass.
    """

    def __init__(self, bias: KeyBias):
        super().__init__()
        self.bias = bias
        self.num_biased = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run a function of PyTorch, attention with the bias."""
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            args, kwargs = self._biased(args, dict(kwargs))
        if func is Tensor.unflatten:  # written in Python with `super()`, which dynamo cannot follow within a mode
            func = torch.unflatten
        return func(*args, **kwargs)

    def _biased(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        named = {**dict(zip(("query", "key", "value", "attn_mask"), args)), **kwargs}
        query, key = named["query"], named["key"]
        bias = self.bias.over(key.shape[-2]) if query.shape[-2] == key.shape[-2] else None
        if bias is None:
            return args, kwargs
        self.num_biased += 1
        mask = additive(named.get("attn_mask"), query.dtype)
        named["attn_mask"] = bias.to(query.dtype) if mask is None else mask + bias.to(query.dtype)
        extra = args[4:]
        return (named.pop("query"), named.pop("key"), named.pop("value"), named.pop("attn_mask"), *extra), named


def check_biased(mode: SizeBias, attention: nn.Module) -> None:
    """Raise where an attention within a mode was computed by something that takes no bias.

    Raises:
        UnsupportedModelError: it says what to use.
    """
    if torch.compiler.is_compiling() or mode.num_biased > 0:  # dynamo does not follow the mode's attributes
        return
    raise UnsupportedModelError(
        f"The attention of a {type(attention).__name__} was not computed by PyTorch's `scaled_dot_product_attention`, "
        "so log(size) could not be added to its keys. Use the attention backend 'native', or "
        "`MergeConfig(..., proportional_attention=False)`."
    )


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a mask as numbers to be added to logits."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


def with_mask(arguments: dict[str, Any], bias: KeyBias) -> dict[str, Any]:
    """Return the arguments of diffusers' `Attention` with the bias in its `attention_mask`, (B, 1, K)."""
    if arguments.get("encoder_hidden_states") is not None:
        return arguments
    hidden = arguments["hidden_states"]
    added = bias.over(hidden.shape[1])
    if added is None:
        return arguments
    mask = arguments.get("attention_mask")
    added = added[:, 0].to(hidden.dtype)  # (B, 1, 1, K) -> (B, 1, K)
    return {**arguments, "attention_mask": added if mask is None else mask + added}

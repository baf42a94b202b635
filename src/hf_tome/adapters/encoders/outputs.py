"""Size-aware pooling and output adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...patching.patch import PatchedModule, context_of
from ...patching.recorder import Recorder
from .attention import log_size
from .carry import NOTHING_MERGED, FinalTokens, stale
from .families.family import OutputAdapter


class SizeReader(PatchedModule):
    """A module that reads the sizes of the final tokens; when the outermost of them returns, the pass is over."""

    reads_sizes = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module as a reader of its pass."""
        with context_of(self).target.recorder.reader():
            return super().__call__(*args, **kwargs)


def final_tokens(module: Any) -> FinalTokens:
    """Return what a patched module behind the blocks has to know; outside of a pass no token is merged.

    Raises:
        RuntimeError: the pass did not reach the last of the blocks that were planned.
    """
    target = context_of(module).target
    recorder: Recorder = target.recorder
    if recorder.current() is not None:
        raise stale(target, "the last of them did not run")
    result = recorder.result()
    return NOTHING_MERGED if result is None else result


def final_size(module: Any, device: torch.device) -> Tensor | None:
    """Return the sizes (B, M, 1) of the final tokens on a device, or `None` where all are 1."""
    return final_tokens(module).size_on(device)


class MeanOutput(SizeReader):
    """A module whose output tokens the model averages: they come out scaled, so that the mean is weighted by size."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, and scale its tokens, be they its output or its `last_hidden_state`."""
        out = super().forward(*args, **kwargs)
        if isinstance(out, Tensor):
            return _weight(self, out)
        out.last_hidden_state = _weight(self, out.last_hidden_state)
        return out


class MeanInput(SizeReader):
    """A pooler that averages the tokens it is given: they go in scaled."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module on the scaled tokens (B, M, C)."""
        return super().forward(_weight(self, hidden_states), *args, **kwargs)


class AttentionPool(SizeReader):
    """An `nn.MultiheadAttention` that pools over tokens: each key gets log(size) (ToMe, equation 1)."""

    num_heads: int

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Attend from `query` (B, L, C) to tokens (B, M, C)."""
        size = final_size(self, key.device)
        if size is not None:
            bias = log_size(size, proportional=True).to(key.dtype)
            # (B, M) -> (B * H, L, M)
            attn_mask = bias.repeat_interleave(self.num_heads, dim=0)[:, None].expand(-1, query.shape[1], -1)
        return super().forward(query, key, value, attn_mask=attn_mask, **kwargs)


class FunctionalPool(SizeReader):
    """AIMv2's head, in which a learned query attends to the tokens: each key gets log(size) (ToMe, equation 1)."""

    num_heads: int

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Pool tokens (B, M, C) to (B, C); nothing but the mask differs from the module's own forward."""
        size = final_size(self, hidden_states.device)
        if size is None:
            return super().forward(hidden_states)
        batch_size, _, width = hidden_states.shape

        def split(states: Tensor) -> Tensor:
            # (B, L, C) -> (B, H, L, C / H)
            return states.reshape(batch_size, -1, self.num_heads, width // self.num_heads).transpose(1, 2)

        query = split(self.cls_token.expand(batch_size, -1, -1))
        key, value = split(self.k_proj(hidden_states)), split(self.v_proj(hidden_states))
        bias = log_size(size, proportional=True)[:, None, None].to(key.dtype)  # (B, M) -> (B, 1, 1, M)
        pooled = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.output_proj(pooled.transpose(1, 2).reshape(batch_size, width))


class LatentPool(SizeReader):
    """Attention of learned latents to the tokens and to themselves (Kosmos-2): each token's key gets log(size)."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Attend from latents (B, L, C) to tokens and latents (B, M + L, C) (ToMe, equation 1)."""
        size = final_size(self, hidden_states.device)
        if size is not None:
            bias = log_size(size, proportional=True).to(hidden_states.dtype)
            # (B, M) -> (B, 1, L, M + L)
            bias = nn.functional.pad(bias, (0, encoder_hidden_states.shape[1] - bias.shape[1]))[:, None, None]
            attention_mask = bias.expand(-1, -1, hidden_states.shape[1], -1)
        return super().forward(
            hidden_states=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **kwargs,
        )


class DropMask(SizeReader):
    """A head that takes a padding mask of the first block's length: padding is in the sizes by now."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Any:
        """Run the head without the mask if tokens have merged."""
        if final_tokens(self).size is not None:
            attention_mask = None
        return super().forward(hidden_states, attention_mask)


POOLS = "pools with attention, with log(size) added to its logits"
AVERAGES = "averages the tokens, weighted by size"


def mean_of(target: str, mixin: type = MeanOutput, averages_prefix: bool = False) -> OutputAdapter:
    """Return the row of a model that averages the tokens out of (`MeanInput`: into) the module at `target`.

    The mean is that of the tokens behind the prefix, or with `averages_prefix` of all tokens.
    """
    return OutputAdapter(mixin, target, AVERAGES, averages_prefix=averages_prefix)


def attention_pool(target: str) -> OutputAdapter:
    """Return the row of a model that pools with the `nn.MultiheadAttention` at `target`."""
    return OutputAdapter(AttentionPool, target, POOLS)


def _weight(module: Any, x: Tensor) -> Tensor:
    """Scale tokens (B, M, C), so that the plain mean of those that a model averages is their mean weighted by size."""
    size = final_size(module, x.device)
    if size is None:
        return x
    context = context_of(module)
    skip = 0 if context.detail.averages_prefix else context.target.plan.num_prefix_tokens
    weight = size.clone()
    rest = size[:, skip:]
    weight[:, :skip] = 1
    weight[:, skip:] = rest * (rest.shape[1] / rest.sum(dim=1, keepdim=True))
    return (x * weight).to(x.dtype)

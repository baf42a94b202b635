"""Heads that stay right when tokens stand for more than one patch each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ...patching.patch import LINK, Swapped
from ...patching.recorder import Link
from ..vision_language.generate import MergedGenerator
from ..vision_language.grid import GridLayers, GridVideoLayers
from ..vision_language.vlm import MergedImageModel, ProjectedImageModel, ProjectedVideoModel
from .attention import log_size
from .cross_attention import MaskedMemory, ZeroPadding, ZerosStay
from .family import Head
from .timm import TimmTower


class MeanOutput(Swapped):
    """A module whose output tokens the model averages: they come out scaled, so that the mean is weighted by size."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, and scale its tokens, be they its output or its `last_hidden_state`."""
        out = super().forward(*args, **kwargs)
        link: Link = getattr(self, LINK)
        if isinstance(out, Tensor):
            return _weight(out, link)
        out.last_hidden_state = _weight(out.last_hidden_state, link)
        return out


class MeanInput(Swapped):
    """A pooler that averages the tokens it is given: they go in scaled."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module on the scaled tokens (B, M, C)."""
        return super().forward(_weight(hidden_states, getattr(self, LINK)), *args, **kwargs)


class AttentionPool(Swapped):
    """An `nn.MultiheadAttention` that pools over tokens: each key gets log(size) (ToMe, equation 1)."""

    num_heads: int

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Attend from `query` (B, L, C) to tokens (B, M, C)."""
        size = getattr(self, LINK).tower.current().final_size(key.device)
        if size is not None:
            bias = log_size(size, proportional=True).to(key.dtype)
            # (B, M) -> (B * H, L, M)
            attn_mask = bias.repeat_interleave(self.num_heads, dim=0)[:, None].expand(-1, query.shape[1], -1)
        return super().forward(query, key, value, attn_mask=attn_mask, **kwargs)


class FunctionalPool(Swapped):
    """AIMv2's head, in which a learned query attends to the tokens: each key gets log(size) (ToMe, equation 1)."""

    num_heads: int

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Pool tokens (B, M, C) to (B, C); nothing but the mask differs from the module's own forward."""
        size = getattr(self, LINK).tower.current().final_size(hidden_states.device)
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


class LatentPool(Swapped):
    """Attention of learned latents to the tokens and to themselves (Kosmos-2): each token's key gets log(size)."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Attend from latents (B, L, C) to tokens and latents (B, M + L, C) (ToMe, equation 1)."""
        size = getattr(self, LINK).tower.current().final_size(hidden_states.device)
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


class DropMask(Swapped):
    """A head that takes a padding mask of the first block's length: padding is in the sizes by now."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Any:
        """Run the head without the mask if tokens have merged."""
        if getattr(self, LINK).tower.current().final_size() is not None:
            attention_mask = None
        return super().forward(hidden_states, attention_mask)


HEADS: dict[str, type | None] = {
    "class_token": None,
    "tokens": None,
    "restore": None,
    "mean_output": MeanOutput,
    "mean_input": MeanInput,
    "attention_pool": AttentionPool,
    "functional_pool": FunctionalPool,
    "latent_pool": LatentPool,
    "timm_pool": TimmTower,
    "drop_mask": DropMask,
    "zero_padding": ZeroPadding,
    "zeros_stay": ZerosStay,
    "masked_memory": MaskedMemory,
    "grid_layers": GridLayers,
    "grid_video_layers": GridVideoLayers,
    "image_features": MergedImageModel,
    "projected": ProjectedImageModel,
    "projected_video": ProjectedVideoModel,
    "generator": MergedGenerator,
}
"""What is swapped at a head's site, by the head's kind; `None` where nothing is."""


def _weight(x: Tensor, link: Link) -> Tensor:
    """Scale the tokens after the first `skip` of (B, M, C), so that their plain mean is the mean weighted by size."""
    size = link.tower.current().final_size(x.device)
    if size is None:
        return x
    skip = link.tower.num_special
    weight = size.clone()
    rest = size[:, skip:]
    weight[:, :skip] = 1
    weight[:, skip:] = rest * (rest.shape[1] / rest.sum(dim=1, keepdim=True))
    return (x * weight).to(x.dtype)


def sites_of(owned_heads: Iterable[tuple[nn.Module, Head]]) -> list[tuple[nn.Module, type]]:
    """Return the modules that heads have swapped, each with its mixin; a model may have been built without one."""
    found = []
    for owner, head in owned_heads:
        mixin = HEADS[head.kind]
        site = None if mixin is None else _at(owner, head.site)
        if mixin is not None and site is not None:
            found.append((site, mixin))
    return found


def _at(owner: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a dotted path, or `None` where there is none; "" is the owner itself."""
    module: Any = owner
    for name in path.split(".") if path else ():
        module = getattr(module, name, None)
        if module is None:
            return None
    return module

"""timm's `VisionTransformer`, by itself or inside transformers' `TimmWrapper...` models: rows, attention and pooling.

Written against timm 1.0.31, which is not imported here: its modules are told by their class names.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...errors import UnsupportedModelError
from ...patching.patch import PatchedModule, context_of
from .attention import AttentionCall, attention_paid, attention_received, log_size
from .block import begin_pass, end_pass
from .families.family import CLASS_TOKEN, TOKENS, Family, OutputAdapter, zero
from .outputs import SizeReader, final_size
from .packing import attend_per_image

GLOBAL_POOLS = ("token", "avg", "avgmax", "max", "map", "")


def is_timm(module: nn.Module) -> bool:
    """Return whether a module is timm's own."""
    return type(module).__module__.startswith("timm.")


def check_timm(tower: Any) -> None:
    """Raise where a timm model has other blocks, or another way to pool, than those that the row knows.

    Raises:
        UnsupportedModelError: it says which.
    """
    pairs = [(type(block).__name__, type(getattr(block, "attn", None)).__name__) for block in tower.blocks]
    others = [pair for pair in pairs if pair != ("Block", "Attention")]
    if others:
        raise UnsupportedModelError(
            f"timm's {type(tower).__name__} has blocks of class {others[0][0]} with attention {others[0][1]}; "
            "only `Block` with `Attention` is supported. Choose a plain ViT, such as vit_base_patch16_224."
        )
    if not isinstance(tower.patch_drop, nn.Identity):
        raise UnsupportedModelError(
            "timm's `patch_drop_rate` drops tokens at random before the first block, which merging does not follow; "
            "create the model with patch_drop_rate=0."
        )
    pool = tower.attn_pool
    if pool is not None and type(pool).__name__ != "AttentionPoolLatent":
        raise UnsupportedModelError(
            f"timm's {type(pool).__name__} cannot weigh tokens by size; supported are `global_pool` "
            f"{', '.join(map(repr, GLOBAL_POOLS))}."
        )


class TimmAttention(PatchedModule):
    """timm's attention with one projection for queries, keys and values; see `MergedAttention`."""

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        merge_call: AttentionCall | None = None,
    ) -> tuple[Tensor, None]:
        """Attend over `x` (B, N, C)."""
        call = merge_call or AttentionCall()
        states = self.qkv(x) if call.stays_packed else call.layout.unpack(self.qkv(x))
        # (B, N, 3*H*d) -> (3, B, H, N, d)
        states = states.reshape(*states.shape[:2], 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = states.unbind(0)
        query, key = self.q_norm(query), self.k_norm(key)
        if call.feature in ("q", "k", "v"):
            call.result = {"q": query, "k": key, "v": value}[call.feature]
        elif call.feature == "received":
            call.result = attention_received(query, key, self.scale, call)
        if call.attending is not None:
            call.attended = attention_paid(query, key, self.scale, call)
        value = call.scale_value(value, call.stays_packed)
        if call.layout.per_image:
            bias = call.bias if context_of(self).target.plan.proportional else None  # no padding, no mask
            out = attend_per_image(
                _attend, self, query, key, value, bias, call.layout, packed=call.stays_packed
            ).flatten(2)
        else:
            bias = None if call.bias is None else call.bias[:, None, None, :].to(query.dtype)  # (B, N) -> (B, 1, 1, N)
            # (B, N, H, d) -> (B, N, H*d)
            out = call.layout.pack(_attend(self, query, key, value, bias)[0].flatten(2))
        out = self.norm(out)
        if getattr(self, "gate", None) is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out)), None


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool = False
) -> tuple[Tensor, None]:
    """Attend as timm does, with its fused kernel or without: (B, H, N, d) -> (B, N, H, d)."""
    if module.fused_attn:
        dropout = module.attn_drop.p if module.training else 0.0
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    else:
        logits = (query * module.scale) @ key.transpose(-2, -1)
        logits = logits if mask is None else logits + mask
        out = module.attn_drop(logits.softmax(dim=-1)) @ value
    return out.transpose(1, 2), None


class TimmTower(SizeReader):
    """timm's `VisionTransformer`: pools by size, and refuses what needs every token."""

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Take pixels (B, 3, H, W) to tokens (B, M, C).

        Raises:
            UnsupportedModelError: the call has an attention mask.
        """
        if attn_mask is not None or is_causal:
            raise UnsupportedModelError("Merging in timm's models takes no `attn_mask` and no `is_causal`.")
        if not self.grad_checkpointing:
            return super().forward_features(x)
        # timm checkpoints calls of blocks; the state has to go into them from outside, as an argument.
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        target = context_of(self).target
        state = begin_pass(target)
        for block in self.blocks:
            x = checkpoint(partial(nn.Module.__call__, block), x, merge_state=state, use_reentrant=False)
        end_pass(target, state)
        return self.norm(x)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Raise `UnsupportedModelError`: timm lays the tokens of each block out on the full grid."""
        raise UnsupportedModelError(
            "timm lays hidden states out on the full grid, and merged tokens have none, so `output_hidden_states` and "
            "`features_only` are not supported; call `hf_tome.remove(model)` first."
        )

    get_intermediate_layers = forward_intermediates

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool tokens (B, M, C), each by as much as it stands for."""
        with context_of(self).target.recorder.reader():
            size = final_size(self, x.device)
        kind = self.global_pool if pool_type is None else pool_type
        if size is None or (self.attn_pool is None and kind not in ("avg", "avgmax", "max")):
            return super().pool(x, pool_type)
        first = 0 if self.pool_include_prefix else self.num_prefix_tokens
        x, size = x[:, first:], size[:, first:]
        if self.attn_pool is not None:
            bias = log_size(size, proportional=True)[:, None, None, :].to(x.dtype)  # (B, M) -> (B, 1, 1, M)
            return self.attn_pool(x, attn_mask=bias)
        mean = ((x * size).sum(dim=1) / size.sum(dim=1)).to(x.dtype)
        largest = x.masked_fill(size <= 0, -torch.inf).amax(dim=1)  # padding has size 0
        return {"avg": mean, "max": largest, "avgmax": 0.5 * (largest + mean)}[kind]


POOL = OutputAdapter(
    TimmTower,
    "timm_model",
    "pools as `global_pool` says, with means and attention weighted by size",
    when_unmerged=True,
)
OWN_POOL = replace(POOL, target="")


def prefix_tokens(config: Any, tower: Any) -> int:
    """Class, distillation and register tokens."""
    return tower.num_prefix_tokens


TIMM_WRAPPERS: dict[str, tuple[OutputAdapter, ...]] = {
    "TimmWrapperModel": (POOL, TOKENS),
    "TimmWrapperForImageClassification": (POOL,),
}


def class_prefix(config: Any, tower: Any) -> int:
    """Class and distillation token."""
    return tower.num_prefix_tokens - tower.num_reg_tokens


TIMM_VIT = Family(
    model_types=("timm_wrapper",),
    tower="VisionTransformer",
    num_prefix_tokens=zero,  # timm's modules have no config to read them from
    protected=prefix_tokens,
    class_tokens=class_prefix,
    heads={"VisionTransformer": (OWN_POOL,), **TIMM_WRAPPERS},
    library="timm",
    layers="blocks",
    norm1="norm1",
    attention="attn",
    after_attention=("ls1", "drop_path1"),
    norm2="norm2",
    mlp=("mlp", "ls2", "drop_path2"),
    residual_first=True,
)

TIMM_FAMILIES: tuple[Family, ...] = (
    TIMM_VIT,
    replace(
        TIMM_VIT,
        tower="VisionTransformerDistilled",
        heads={"VisionTransformerDistilled": (CLASS_TOKEN, OWN_POOL), **TIMM_WRAPPERS},
    ),
)

TIMM_TOWERS: dict[str, Family] = {family.tower: family for family in TIMM_FAMILIES}
"""The rows by the class name of timm's module that owns the blocks."""

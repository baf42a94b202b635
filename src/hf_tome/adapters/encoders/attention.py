"""The one attention forward that the rows drive, and proportional attention for every backend."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import UnsupportedModelError
from ...patching.patch import PatchedModule, context_of
from .packing import PADDED, Attend, PaddedLayout, attend_per_image

if TYPE_CHECKING:
    from .families.family import Family

MASK_BACKENDS = ("eager", "sdpa")
"""Attention functions that take an additive mask."""
CHANNEL_BACKENDS = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
"""Attention functions that take none, or no broadcast one: the bias travels in extra channels of queries and keys."""
SUPPORTED_BACKENDS = MASK_BACKENDS + CHANNEL_BACKENDS

CHANNEL_ALIGNMENT = 8  # head sizes of flash kernels are multiples of this
MASKED = -1e4
"""Logit of a masked token where the bias is a channel: its exponential is exactly 0, and no infinity meets a 0."""
QUERY_KEY_FEATURES = ("q", "k", "v", "received")
"""Features of tokens that attention computes."""


@dataclass
class AttentionCall:
    """What a block asks of its attention, and what it gets back.

    Attributes:
        bias (`Tensor`, *optional*): (B, N), added to the logits of each key: log(size), minus infinity for padding.
        real (`Tensor`, *optional*): (B, N) bool, the tokens that are not padding; `None` where all are real.
        position (`Tensor`, *optional*): (B, N) int64, the input position of each token, for rotary tables.
        feature (`str`, *optional*): `"k"`, `"q"`, `"v"` (before any rotary embedding) or `"received"`, to be returned.
        attending (`int`, *optional*): how many leading tokens are class tokens whose attention is to be returned.
        num_queries (`int`, *optional*): how many leading tokens attend, where the others are not read; the output then
            has their rows alone, and is not packed.
        value_scale (`Tensor`, *optional*): (B, N), by which each token's value is multiplied.
        layout (`PaddedLayout`): of the attention's input and output.
        result (`Tensor`, *optional*): (B, H, N, d) for a projection, (B, N) for the attention each token received.
        attended (`Tensor`, *optional*): (B, N), see `attention_paid`.
    """

    bias: Tensor | None = None
    real: Tensor | None = None
    position: Tensor | None = None
    num_prefix_tokens: int = 0
    feature: str | None = None
    attending: int | None = None
    num_queries: int | None = None
    value_scale: Tensor | None = None
    layout: PaddedLayout = PADDED
    result: Tensor | None = None
    attended: Tensor | None = None

    @property
    def stays_packed(self) -> bool:
        """Whether queries, keys and values may stay packed: nothing reads those of all images at once."""
        all_read = self.attending is not None or self.num_queries is not None or self.feature in QUERY_KEY_FEATURES
        return self.layout.per_image and not all_read

    def scale_value(self, value: Tensor, packed: bool) -> Tensor:
        """Return the values (B, H, N, d), or (1, H, R, d) where they are packed, by `value_scale`."""
        if self.value_scale is None:
            return value
        scale = self.value_scale[..., None]  # (B, N, 1)
        scale = self.layout.pack(scale) if packed else scale
        return value * scale[:, None].to(value.dtype)  # (B, 1, N, 1)


class MergedAttention(PatchedModule):
    """Attention that hands out its projections and weighs each key by its token's size."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        *,
        merge_call: AttentionCall | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over `hidden_states` (B, N, C); the mask is what transformers made for the backend."""
        call = merge_call or AttentionCall()
        context = context_of(self)
        family: Family = context.target.plan.family
        head_dim = getattr(self, family.head_dim)
        packed = call.stays_packed and family.rotary is None

        def project(name: str, norm: str | None = None, count: int | None = None) -> Tensor:
            # (1, R, H*d) -> (B, N, H*d) where all images are attended to at once; -> (B, H, N or count, d)
            states = hidden_states if count is None else call.layout.unpack(hidden_states)[:, :count]
            states = getattr(self, name)(states)
            if norm is not None and not family.norm_heads:
                states = getattr(self, norm)(states)
            states = call.layout.unpack(states) if count is None and not packed else states
            states = states.view(*states.shape[:2], -1, head_dim).transpose(1, 2)
            return getattr(self, norm)(states) if norm is not None and family.norm_heads else states

        query, key = project(family.query, family.query_norm, call.num_queries), project(family.key, family.key_norm)
        value, scaling = project(family.value), getattr(self, family.scaling)
        if family.scales_query:  # in the order, and the memory layout, of the model's own, for the same bits
            query, scaling = (query * scaling).contiguous(), 1.0
            key, value = key.contiguous(), value.contiguous()
        if call.feature in ("q", "k", "v"):
            call.result = {"q": query, "k": key, "v": value}[call.feature]
        if family.rotary is not None:
            query, key = _rotate(self, family.rotary, query, key, kwargs.pop("position_embeddings"), call)

        value = call.scale_value(value, packed)
        backend = check_backend(backend_of(self))
        pairs = None if family.position_bias is None else attention_mask
        if call.feature == "received":
            call.result = attention_received(query, for_each_head(key, query), scaling, call, pairs)
        if call.attending is not None:
            call.attended = attention_paid(query, for_each_head(key, query), scaling, call, pairs)
        dropout = getattr(self, family.dropout) if self.training else 0.0
        attend = self.attention_function(backend)
        options = {"dropout": dropout, "scaling": scaling, **kwargs}
        layout = call.layout if call.num_queries is None else PADDED
        if layout.per_image:
            bias = call.bias if context.target.plan.proportional else None  # no padding, no mask
            out = attend_per_image(attend, self, query, key, value, bias, layout, packed=packed, **options)
            return self._project_out(out.flatten(2), family), None
        if call.bias is not None and backend in CHANNEL_BACKENDS:
            query, key, value = with_bias_channel(query, key, value, call.bias, scaling)
        elif call.bias is not None:
            bias = call.bias[:, None, None, :].to(query.dtype)  # (B, N) -> (B, 1, 1, N)
            attention_mask = bias if attention_mask is None else attention_mask + bias
        out, weights = attend(self, query, key, value, attention_mask, is_causal=False, **options)
        # (B, N, H, d) -> (B, N, H*d); a bias channel and its padding are cut off
        out = layout.pack(out[..., :head_dim].flatten(2).contiguous())
        return self._project_out(out, family), weights

    def attention_function(self, backend: str) -> Attend:
        """Return what attends, as the attention functions of transformers do."""
        # Families differ in the dtype of their softmax; r=0 must give the same bits, so each keeps its own eager form.
        modeling: Any = sys.modules[context_of(self).detail]
        return modeling.ALL_ATTENTION_FUNCTIONS.get_interface(backend, modeling.eager_attention_forward)

    def _project_out(self, out: Tensor, family: Family) -> Tensor:
        return getattr(self, family.out)(out) if family.out else out


def backend_of(module: Any) -> str:
    """Return the name of the attention implementation of a tower or an attention module."""
    config = getattr(module, "config", None)
    if config is not None:
        return config._attn_implementation
    # timm's modules have no config, and each attention says for itself whether it calls PyTorch's fused kernel.
    fused = next(part.fused_attn for part in module.modules() if hasattr(part, "fused_attn"))
    return "sdpa" if fused else "eager"


def check_backend(backend: str) -> str:
    """Return the name of an attention implementation through which sizes can be passed.

    Raises:
        UnsupportedModelError: it is not one of `SUPPORTED_BACKENDS`.
    """
    if backend not in SUPPORTED_BACKENDS:
        raise UnsupportedModelError(
            f"The attention implementation {backend!r} is not supported: hf_tome does not know how to weigh keys by "
            f"size in it. Supported are {', '.join(map(repr, SUPPORTED_BACKENDS))}; use "
            "`model.set_attn_implementation('sdpa')`."
        )
    return backend


def log_size(size: Tensor, proportional: bool) -> Tensor:
    """Return the bias (B, N) of sizes (B, N, 1): log(size) (ToMe, equation 1) or 0, and -inf for padding."""
    # The logarithm of padding's 0 is minus infinity by itself; sizes carry no gradient that it could spoil.
    size = size[..., 0]
    return size.log() if proportional else torch.zeros_like(size).masked_fill(size <= 0, -torch.inf)


def with_bias_channel(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry a bias per key in extra channels, for kernels that take no mask: q' = [q, 1, 1], k' = [k, high, low].

    The bias is split in two channels, its value in the keys' dtype and what that rounding left over, so that half
    precision loses nothing. (B, H, N, d) -> (B, H, N, d'), with d' a multiple of 8; there may be fewer queries. The
    bias is (B, N), or (B, H, N) where heads of keys differ in it.
    """
    batch_size, num_heads, _, head_dim = key.shape
    bias = bias[:, None] if bias.ndim == 2 else bias
    exact = bias.to(torch.promote_types(bias.dtype, key.dtype))[..., None]  # (B, 1 or H, N, 1)
    # Half precision ends at 65504, which a masked token's logit may exceed once the scaling is taken out.
    exact = (exact.clamp(min=MASKED) / scaling).clamp(min=torch.finfo(key.dtype).min / 2)
    high = exact.to(key.dtype)
    low = (exact - high.to(exact.dtype)).to(key.dtype)
    padding = -(head_dim + 2) % CHANNEL_ALIGNMENT
    extra = torch.cat([high, low], dim=-1).expand(batch_size, num_heads, -1, -1)
    extra = nn.functional.pad(extra, (0, padding))
    ones = query.new_ones((*query.shape[:3], 2))  # there may be fewer heads of keys
    query = torch.cat([query, nn.functional.pad(ones, (0, padding))], dim=-1)
    return query, torch.cat([key, extra], dim=-1), nn.functional.pad(value, (0, 2 + padding))


def for_each_head(key: Tensor, query: Tensor) -> Tensor:
    """Repeat keys (B, G, N, d) that several heads share, (B, H, N, d)."""
    groups, heads = key.shape[1], query.shape[1]
    return key if groups == heads else key.repeat_interleave(heads // groups, dim=1)


def _rotate(
    module: nn.Module, name: str, query: Tensor, key: Tensor, tables: tuple[Tensor, Tensor], call: AttentionCall
) -> tuple[Tensor, Tensor]:
    rotate = getattr(sys.modules[context_of(module).detail], name)
    if call.position is None:
        return rotate(query, key, *tables)
    # A merged token keeps the position of the token it was merged into; (patches, d) -> (B, 1, N - prefix, d)
    rows = call.position[:, call.num_prefix_tokens :] - call.num_prefix_tokens
    return rotate(query, key, *(table[rows][:, None] for table in tables))


def attention_received(
    query: Tensor, key: Tensor, scaling: float, call: AttentionCall, pairs: Tensor | None = None
) -> Tensor:
    """Return how much attention each token receives, averaged over heads and over the queries that are real, (B, N).

    `pairs` (B or 1, H, N, N) is a bias for each pair of positions.
    """
    logits = query.float() @ key.float().transpose(-1, -2) * scaling
    for bias in (pairs, None if call.bias is None else call.bias[:, None, None, :]):
        logits = logits if bias is None else logits + bias
    if call.real is None:
        return logits.softmax(dim=-1).mean(dim=(1, 2)).detach()
    weights = logits.masked_fill(~call.real[:, None, None, :], -torch.inf).softmax(dim=-1)
    real = call.real[:, None, :, None]  # of each query, (B, 1, N, 1)
    return (weights.masked_fill(~real, 0).sum(dim=2) / real.sum(dim=2)).mean(dim=1).detach()


MOST_ATTENDED = 5.0
"""More than so many times the mean attention counts as so much: one token in a sink would outweigh all others."""


def attention_paid(
    query: Tensor, key: Tensor, scaling: float, call: AttentionCall, pairs: Tensor | None = None
) -> Tensor:
    """Return the attention that class tokens pay to each token, as a multiple of its mean over those that may merge.

    It is a mean over heads and class tokens; where there are none, the query is the mean of all real tokens' queries.
    One row of queries, (B, H, c, d) by (B, H, N, d), so that fused attention stays. `pairs` as in
    `attention_received`. Returns (B, N), `MOST_ATTENDED` at most.
    """
    if call.attending:
        query = query[:, :, : call.attending]
        pairs = None if pairs is None else pairs[:, :, : call.attending]
    else:
        real = None if call.real is None else call.real[:, None, :, None].to(query.dtype)  # (B, 1, N, 1)
        # (B, H, N, d) -> (B, H, 1, d)
        query = query.mean(dim=2, keepdim=True) if real is None else (query * real).sum(2, True) / real.sum(2, True)
        pairs = None if pairs is None else pairs.mean(dim=2, keepdim=True)
    logits = query.float() @ key.float().transpose(-1, -2) * scaling  # (B, H, c, N)
    for bias in (pairs, None if call.bias is None else call.bias[:, None, None, :]):
        logits = logits if bias is None else logits + bias
    if call.real is not None:
        logits = logits.masked_fill(~call.real[:, None, None, :], -torch.inf)
    paid = logits.softmax(dim=-1).mean(dim=(1, 2)).detach()  # (B, N)
    mergeable = paid[:, call.num_prefix_tokens :]
    count = mergeable.shape[1] if call.real is None else call.real[:, call.num_prefix_tokens :].sum(1, keepdim=True)
    mean = mergeable.sum(dim=1, keepdim=True) / count
    return (paid / mean.clamp(min=torch.finfo(paid.dtype).tiny)).clamp(max=MOST_ATTENDED)

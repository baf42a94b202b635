"""The attention of packed towers within segments, with log(size) added to each key's logits."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ....patching.patch import PatchedModule, context_of
from ...encoders.attention import (
    CHANNEL_BACKENDS,
    AttentionCall,
    attention_paid,
    backend_of,
    check_backend,
    for_each_head,
    with_bias_channel,
)
from .segments import Segments

if TYPE_CHECKING:
    from .family import PackedFamily


@dataclass(kw_only=True)
class SegmentCall:
    """What a block asks of an attention within segments, and what it gets back.

    Attributes:
        feature (`str`, *optional*): `"k"`, `"q"` or `"v"` (before any rotary embedding), to be returned.
        attending (`int`, *optional*): how many leading tokens of a segment are class tokens whose attention is to be
            returned; 0 for the mean of all queries.
        value_scale (`Tensor`, *optional*): (S,), by which each token's value is multiplied.
        result (`Tensor`, *optional*): (S, H, d), the feature.
        attended (`Tensor`, *optional*): (S,), see `attention_paid`.
    """

    feature: str | None = None
    attending: int | None = None
    value_scale: Tensor | None = None
    result: Tensor | None = None
    attended: Tensor | None = None

    def take_feature(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep the feature that is asked for, of projections (S, H, d)."""
        if self.feature in ("q", "k", "v"):
            self.result = {"q": query, "k": key, "v": value}[self.feature]

    def scale_value(self, value: Tensor) -> Tensor:
        """Return the values (S, H, d) by `value_scale`."""
        return value if self.value_scale is None else value * self.value_scale[:, None, None].to(value.dtype)


@dataclass(kw_only=True)
class PackedCall(SegmentCall):
    """The same of packed tokens.

    Attributes:
        segments: in which tokens attend to each other.
        bias (`Tensor`, *optional*): (S,), log(size), added to the logits of each key.
    """

    segments: Segments
    bias: Tensor | None = None
    num_prefix_tokens: int = 0


class PackedAttention(PatchedModule):
    """Attention of packed tokens that weighs each key by its token's size; the model's own where no block asks."""

    def forward(
        self, hidden_states: Tensor, *args: Any, merge_call: PackedCall | None = None, **kwargs: Any
    ) -> Tensor | tuple[Tensor, None]:
        """Attend over `hidden_states` (S, C) within the segments of the call."""
        if merge_call is None:
            return super().forward(hidden_states, *args, **kwargs)
        context = context_of(self)
        family: PackedFamily = context.target.plan.family
        modeling, call = sys.modules[context.detail], merge_call
        query, key, value = self._project(hidden_states, family)
        call.take_feature(query, key, value)
        value = call.scale_value(value)
        tables = kwargs.pop("position_embeddings", None)
        if family.rotary is not None:
            query, key = getattr(modeling, family.rotary)(query, key, *tables)
        backend = check_backend(backend_of(self))
        options = {
            "scaling": getattr(self, family.scaling),
            "dropout": getattr(self, family.dropout, 0.0) if self.training else 0.0,
            "is_causal": False,
            **kwargs,
        }
        if call.attending is not None:
            call.attended = _attended(call, query, key, options["scaling"])
        attend = modeling.ALL_ATTENTION_FUNCTIONS.get_interface(backend, modeling.eager_attention_forward)
        if backend.startswith("flash"):
            out = _attend_packed(attend, self, query, key, value, call, options)
        else:
            out = _attend_by_length(attend, self, query, key, value, call, options, backend in CHANNEL_BACKENDS)
        out = getattr(self, family.out)(out.flatten(1))  # (S, H, d) -> (S, H*d)
        return (out, None) if family.gives_weights else out

    def _project(self, x: Tensor, family: PackedFamily) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (S, H, d), and keys and values (S, G, d) of as many heads or fewer."""
        head_dim = self.head_dim
        if family.qkv is not None:
            heads = getattr(self, family.qkv)(x).view(len(x), -1, head_dim)  # (S, H + 2 * G, d)
            num_heads = getattr(self, family.out).in_features // head_dim
            groups = (heads.shape[1] - num_heads) // 2
            query, key, value = heads.split([num_heads, groups, groups], dim=1)
        else:
            names = (family.query, family.key, family.value)
            query, key, value = (getattr(self, name)(x).view(len(x), -1, head_dim) for name in names)
        if family.query_norm is not None and family.key_norm is not None:
            query, key = getattr(self, family.query_norm)(query), getattr(self, family.key_norm)(key)
        return query, key, value


def _attend_by_length(
    attend: Any,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    call: PackedCall,
    options: dict[str, Any],
    in_channels: bool,
) -> Tensor:
    """Attend in all segments of one length at once: (S, H, d) -> (S, H, d)."""
    segments, outputs = call.segments, []
    head_dim = query.shape[-1]
    biases = [None] * len(segments.shapes) if call.bias is None else segments.split(call.bias)
    for states, bias in zip(zip(*(segments.split(part) for part in (query, key, value))), biases):
        q, k, v = (part.transpose(1, 2) for part in states)  # (G, N, H, d) -> (G, H, N, d)
        mask = None
        if bias is not None and in_channels:
            q, k, v = with_bias_channel(q, k, v, bias, options["scaling"])
        elif bias is not None:
            mask = bias[:, None, None, :].to(q.dtype)  # (G, N) -> (G, 1, 1, N)
        outputs.append(attend(module, q, k, v, attention_mask=mask, **options)[0][..., :head_dim])
    return segments.join(outputs)


def _attend_packed(
    attend: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, call: PackedCall, options: dict[str, Any]
) -> Tensor:
    """Attend in all segments at once, with a kernel that takes cumulative lengths: (S, H, d) -> (S, H, d)."""
    head_dim, bounds, longest = query.shape[-1], call.segments.cumulative(query.device), max(call.segments.lengths)
    query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))  # (1, H, S, d)
    if call.bias is not None:
        query, key, value = with_bias_channel(query, key, value, call.bias[None], options["scaling"])
    out, _ = attend(
        module,
        query,
        key,
        value,
        attention_mask=None,
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=longest,
        max_length_k=longest,
        **options,
    )
    return out[0, ..., :head_dim]


def _attended(call: PackedCall, query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Return the attention paid to each token within its segment, (S,)."""
    segments = call.segments
    biases = [None] * len(segments.shapes) if call.bias is None else segments.split(call.bias)
    paid = []
    for q, k, bias in zip(segments.split(query), segments.split(key), biases):
        inner = AttentionCall(bias=bias, attending=call.attending, num_prefix_tokens=call.num_prefix_tokens)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        paid.append(attention_paid(q, for_each_head(k, q), scaling, inner))
    return segments.join([part[..., None] for part in paid])[:, 0]

"""What a block measures similarity on, how it matches its tokens, and what merging them hands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...merging import HardMerge, MatchInputs

if TYPE_CHECKING:
    from ...config import MergeConfig
    from ...merging import Merge
    from ...merging.method import Fields


def wanted_feature(plan: Any, index: int) -> str | None:
    """Return what similarity is measured on in block `index`; `None` for its tokens after attention."""
    if not plan.merging[index]:
        return None
    feature = plan.method.metric or plan.config.choice("metric")
    return None if feature == "x" else feature


def aggregated_heads(config: MergeConfig, metric: Tensor) -> Tensor:
    """Return the metric of tokens as (B, N, D), also where it comes by head, (B, H, N, d)."""
    if metric.ndim < 4:
        return metric
    mean = config.choice("head_aggregation") == "mean"
    # (B, H, N, d) -> (B, N, d) or (B, N, H*d)
    return metric.mean(dim=1) if mean else metric.transpose(1, 2).flatten(2)


def match_tokens(
    plan: Any,
    index: int,
    metric: Tensor,
    r: int,
    fields: Fields,
    size: Tensor | None = None,
    attended: Tensor | None = None,
) -> Merge:
    """Match the tokens of block `index` as the plan's method does (see `MatchInputs`)."""
    inputs = MatchInputs(
        metric=metric,
        r=r,
        num_prefix_tokens=plan.num_prefix_tokens,
        size=size,
        seed=plan.config.seed * plan.num_layers + index,
        layer=index,
        num_layers=plan.num_layers,
        fields=fields,
        attended=attended,
    )
    return plan.method(inputs)


def merge_with_coherence(
    match: Merge, x: Tensor, size: Tensor | None, coherence: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Merge tokens (B, N, C) of sizes (B, N, 1), and what `combine="keep_norm"` has to know of them, (B, N)."""
    if isinstance(match, HardMerge) and match.keeps_norm:
        return match.merge_keeping_norm(x, size, coherence)
    x, size = match.merge(x, size)
    return x, size, coherence

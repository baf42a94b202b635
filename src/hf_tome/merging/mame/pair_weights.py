"""The fusion weights of MaMe (equations 3 to 8) for a list of pairs, in double precision, with their gradient.

Sums over the destinations of a source are `np.bincount`: pairs may be in any order, and their sums do not depend on
what else is in the batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fusion_weights import TIE
from .screen import Booleans, Floats, Integers


class PairWeights(NamedTuple):
    """What equations 3 to 8 give for pairs.

    Attributes:
        weight, share: (E,), W^F, and the same without epsilon, which sums to 1 over a source's pairs.
        gone: (R,), the sources that have weights.
        is_fused: (E,), the pairs whose weights depend on their cosines.
    """

    weight: Floats
    share: Floats
    gone: Booleans
    is_fused: Booleans


def pair_weights(cosine: Floats, row: Integers, num_rows: int, threshold: float, eps: float) -> PairWeights:
    """Return the weights of pairs (E,) that belong to the sources `row` (E,), of `num_rows`."""
    sparse = np.maximum(cosine - threshold, 0)
    total = np.bincount(row, sparse, num_rows)
    weights = sparse / (total + eps)[row]
    count = np.bincount(row, weights / (weights + eps), num_rows)
    zeta = total / ((total + eps) * (count + eps))
    pruned = weights - zeta[row]
    pruned *= pruned > TIE
    total = np.bincount(row, pruned, num_rows)
    total_of_pair = total[row]
    return PairWeights(
        pruned / (total_of_pair + eps), pruned / np.maximum(total_of_pair, TIE), total > 0, total_of_pair > 0
    )


def differentiable_weights(
    metric: Tensor,
    rows: Integers,
    cosine: Floats,
    row: Integers,
    weights: PairWeights,
    threshold: float,
    eps: float,
) -> Tensor:
    """Return the weights as a tensor (E,) in the precision of the tokens, through which gradients reach `metric`.

    Args:
        metric (`Tensor`): (B, N, D).
        rows: (2, E), the rows of each pair's source and destination among all tokens (B * N,).
        cosine, row: (E,), of each pair, and which source it belongs to.
    """
    values = torch.from_numpy(weights.weight).to(torch.promote_types(metric.dtype, torch.float32))
    if not weights.is_fused.any():
        return values
    kept = np.flatnonzero(weights.is_fused)
    row = np.unique(row[kept], return_inverse=True)[1]
    return _DifferentiableWeights.apply(metric, values, kept, rows[:, kept], cosine[kept], row, threshold, eps)


class _DifferentiableWeights(torch.autograd.Function):
    @staticmethod
    def forward(metric: Tensor, values: Tensor, *_: Any) -> Tensor:  # type: ignore[override]
        """Return the weights."""
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the gradient is made of: of the tokens no copy."""
        metric, _, *ctx.pairs = inputs
        ctx.save_for_backward(metric)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradient of the tokens."""
        (metric,) = ctx.saved_tensors
        kept, rows, cosine, row, threshold, eps = ctx.pairs
        of_cosine = _gradient_of_cosines(grad.double().numpy()[kept], cosine, row, threshold, eps)
        tokens = metric.reshape(-1, metric.shape[-1])
        a, b = (tokens.index_select(0, torch.from_numpy(side)).to(grad.dtype) for side in rows)  # (E, D)
        a_length, b_length = (torch.linalg.vector_norm(side, dim=-1, keepdim=True) for side in (a, b))
        unit_a, unit_b = a / a_length, b / b_length
        cosines, by = (torch.from_numpy(values).to(grad.dtype)[:, None] for values in (cosine, of_cosine))
        out = torch.zeros_like(tokens, dtype=grad.dtype)
        out.index_add_(0, torch.from_numpy(rows[0]), (unit_b - cosines * unit_a) * (by / a_length))
        out.index_add_(0, torch.from_numpy(rows[1]), (unit_a - cosines * unit_b) * (by / b_length))
        return out.view_as(metric).to(metric.dtype), *(None for _ in range(len(ctx.pairs) + 1))


def _gradient_of_cosines(grad: Floats, cosine: Floats, row: Integers, threshold: float, eps: float) -> Floats:
    """Return the gradient of the cosines of pairs from that of their weights W^F (`fusion_weights._gradient`)."""

    def total(values: Floats) -> Floats:
        return cast(Floats, np.bincount(row, values))[row]

    sparse = np.maximum(cosine - threshold, 0)
    all_sparse = total(sparse) + eps
    weights = sparse / all_sparse
    count = total(weights / (weights + eps)) + eps
    zeta = total(weights) / count
    pruned = weights - zeta
    pruned *= pruned > TIE
    all_pruned = total(pruned) + eps
    # W^F = p / P with p = threshold(w - zeta), P = sum(p) + eps
    grad = (grad - total(grad * pruned / all_pruned)) / all_pruned * (pruned > 0)
    # zeta = sum(w) / C with C = sum(w / (w + eps)) + eps
    of_zeta = -total(grad) / count
    grad = grad + of_zeta * (1 - zeta * eps / np.square(weights + eps))
    # w = s / S with s = relu(cosine - threshold), S = sum(s) + eps
    return (grad - total(grad * weights)) / all_sparse * (sparse > 0)

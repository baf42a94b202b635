"""The fusion weights of MaMe (equations 3 to 8), with their gradient in closed form.

Matrices as large as the square of the tokens are what MaMe costs in training. Written out with plain operators,
autograd keeps ten of them in double precision and passes over forty. Here two are kept, in the precision of the
tokens, and all is computed a few images at a time, which stay in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..indexing import is_traced

TIE = 1e-6
"""A weight that exceeds its column's threshold by no more than this is a tie, not a connection.

By equations 5 to 8 a source with one destination above tau, or with equal weights, has W = zeta, so its column is zero
and it is preserved. In floating point the sign of W - zeta is rounding noise there, and must not decide. (Without
pruning the threshold is 0: a source that is just as similar as tau has weights of rounding noise alone.)
"""
CHUNK_BYTES = 1 << 19
"""Similarities of so many bytes are computed at a time on a CPU: what is made of them fits its second cache."""


def fusion_weights(
    scores: Tensor, threshold: float, eps: float, adaptive_pruning: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """Return W^F of equations 3 to 8, (B, T, S), from the similarity of destinations (rows) to sources (columns).

    Args:
        scores (`Tensor`): (B, T, S).
        threshold, eps (`float`): tau and epsilon.
        adaptive_pruning (`bool`): equations 5 to 8; without them W of equation 4 is returned.
        dtype (`torch.dtype`, *optional*): of the weights and of the gradient's computation; by default the scores'.
    """
    dtype = scores.dtype if dtype is None else dtype
    if is_traced():  # a compiler fuses the plain form itself
        return plain_fusion_weights(scores, threshold, eps, adaptive_pruning).to(dtype)
    return _FusionWeights.apply(scores, threshold, eps, adaptive_pruning, dtype)[0]


def plain_fusion_weights(scores: Tensor, threshold: float, eps: float, adaptive_pruning: bool) -> Tensor:
    """Return W^F by plain operators."""
    # Padding scores minus infinity, and relu makes it exactly 0.
    sparse = (scores - threshold).relu()
    weights = sparse / (sparse.sum(dim=1, keepdim=True) + eps)
    if not adaptive_pruning:
        return torch.threshold(weights, TIE, 0.0)
    count = (weights / (weights + eps)).sum(dim=1, keepdim=True)
    zeta = weights.sum(dim=1, keepdim=True) / (count + eps)
    pruned = torch.threshold(weights - zeta, TIE, 0.0)
    return pruned / (pruned.sum(dim=1, keepdim=True) + eps)


class _FusionWeights(torch.autograd.Function):
    """W^F and, for the backward pass, W of equation 4 and the sums over destinations (4, B, 1, S)."""

    @staticmethod
    def forward(  # type: ignore[override]
        scores: Tensor, threshold: float, eps: float, adaptive_pruning: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the weights, a few images at a time."""
        out, weights = (torch.empty_like(scores, dtype=dtype) for _ in range(2))
        sums = scores.new_empty((4, scores.shape[0], 1, scores.shape[2]))
        for chunk in _chunks(scores):
            _compute(scores[chunk], threshold, eps, adaptive_pruning, out[chunk], weights[chunk], sums[:, chunk])
        return out, weights, sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the gradient is made of."""
        _, _, ctx.eps, ctx.adaptive_pruning, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Compute the gradient of the similarities, a few images at a time."""
        out, weights, sums = ctx.saved_tensors
        scores_grad = torch.empty_like(out)
        for chunk in _chunks(out):
            scores_grad[chunk] = _gradient(
                grad[chunk], out[chunk], weights[chunk], sums[:, chunk].to(out.dtype), ctx.eps, ctx.adaptive_pruning
            )
        return scores_grad.to(sums.dtype), None, None, None, None


def _compute(
    scores: Tensor, threshold: float, eps: float, adaptive_pruning: bool, out: Tensor, weights: Tensor, sums: Tensor
) -> None:
    """Write W^F, W and the sums of some images."""
    values = (scores - threshold).relu_()
    total = values.sum(dim=1, keepdim=True).add_(eps)
    values.mul_(total.reciprocal())
    sums[0] = total
    weights.copy_(values)
    if not adaptive_pruning:
        out.copy_(torch.threshold_(values, TIE, 0.0))
        return
    count = values.div(values + eps).sum(dim=1, keepdim=True).add_(eps)
    zeta = values.sum(dim=1, keepdim=True).div_(count)
    torch.threshold_(values.sub_(zeta), TIE, 0.0)
    pruned_total = values.sum(dim=1, keepdim=True).add_(eps)
    out.copy_(values.mul_(pruned_total.reciprocal()))
    sums[1], sums[2], sums[3] = count, zeta, pruned_total


def _gradient(grad: Tensor, out: Tensor, weights: Tensor, sums: Tensor, eps: float, adaptive_pruning: bool) -> Tensor:
    """Return the gradient of the similarities of some images from that of W^F, both (b, T, S)."""
    total, count, zeta, pruned_total = sums
    if adaptive_pruning:
        # W^F = p / P with p = threshold(w - zeta), P = sum(p) + eps
        shared = (grad * out).sum(dim=1, keepdim=True)
        grad = _where_positive((grad - shared).mul_(pruned_total.reciprocal()), out)
        # zeta = sum(w) / C with C = sum(w / (w + eps)) + eps
        of_zeta = grad.sum(dim=1, keepdim=True).div_(count).neg_()
        of_count = (weights + eps).square_().reciprocal_().mul_(zeta * of_zeta * -eps)
        grad = grad.add_(of_count).add_(of_zeta)
    else:
        grad = _where_positive(grad, out)
    # w = s / S with s = relu(scores - threshold), S = sum(s) + eps
    shared = (grad * weights).sum(dim=1, keepdim=True)
    return _where_positive(grad.sub_(shared).mul_(total.reciprocal()), weights)


def _where_positive(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient with zeros where `x` is zero: the backward pass of relu, which makes no mask."""
    return torch.ops.aten.threshold_backward(grad, x, 0.0)


def _chunks(x: Tensor) -> list[slice]:
    """Split (B, T, S) into a few images each on a CPU; elsewhere all are computed at once."""
    if x.device.type != "cpu" or x.numel() == 0:
        return [slice(None)]
    step = max(CHUNK_BYTES // (x[0].numel() * x.element_size()), 1)
    return [slice(begin, begin + step) for begin in range(0, x.shape[0], step)]

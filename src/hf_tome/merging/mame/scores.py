"""The similarities that MaMe's weights are made of (equation 2), in double precision on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..indexing import has_cpu_values, take
from ..similarity import TOO_LONG, full_precision, similarity

SHORTEST = 1e-12
"""Tokens shorter than this are not brought to length 1."""


def paired_scores(
    metric: Tensor, sources: Tensor, destinations: Tensor, distance: str, padding: Tensor | None
) -> Tensor:
    """Return the similarity of destinations (rows) to sources (columns), (B, T, S)."""
    if distance == "cosine" and padding is None and _is_eager_graph(metric, sources, destinations):
        length = torch.linalg.vector_norm(metric.detach(), dim=-1, keepdim=True)  # (B, N, 1)
        if length.numel() and length.max().item() < TOO_LONG:  # false where a token is broken
            return _Cosines.apply(metric, sources, destinations)[0].transpose(1, 2)
    scores, bias = similarity(_precise(metric), sources, destinations, distance, padding, bounded=True)
    return (scores + bias[..., None]).transpose(1, 2)


def _is_eager_graph(metric: Tensor, sources: Tensor, destinations: Tensor) -> bool:
    """Return whether gradients are to run through plain tensors on a CPU, on a partition that all images share."""
    is_shared = sources.ndim == destinations.ndim == 1
    return has_cpu_values(metric) and is_shared and torch.is_grad_enabled() and metric.requires_grad


def _precise(metric: Tensor) -> Tensor:
    # Equation 8 divides by sums of differences that may be a few times TIE, so rounding of the similarities is
    # amplified a hundredfold. Double precision is cheap on a CPU; most accelerators are slow at it, or have none.
    return metric.double() if metric.device.type == "cpu" else metric


class _Cosines(torch.autograd.Function):
    """Cosines of sources and destinations (B, S, T) in double precision, their gradient in the tokens' own."""

    @staticmethod
    def forward(metric: Tensor, sources: Tensor, destinations: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Compute the cosines; also the tokens at length 1 (B, N, D), and 1 over their lengths (B, N, 1)."""
        precise = metric.double()
        inverse = torch.linalg.vector_norm(precise, dim=-1, keepdim=True).clamp_(min=SHORTEST).reciprocal_()
        unit = precise * inverse
        with full_precision(metric.device):
            cosines = torch.bmm(take(unit, sources), take(unit, destinations).transpose(1, 2))
        full = torch.promote_types(metric.dtype, torch.float32)
        return cosines, unit.to(full), inverse.to(full)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the gradient is made of."""
        metric, *positions = inputs
        ctx.dtype = metric.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*positions, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradient of the tokens."""
        sources, destinations, unit, inverse = ctx.saved_tensors
        grad = grad.to(unit.dtype)
        out = torch.zeros_like(unit)
        with full_precision(unit.device):
            out[:, sources] = torch.bmm(grad, take(unit, destinations))
            out[:, destinations] = torch.bmm(grad.transpose(1, 2), take(unit, sources))
        # What makes a token longer changes no cosine, but of tokens that are not brought to length 1.
        along = (out * unit).sum(dim=-1, keepdim=True).mul_(inverse < 1 / SHORTEST)
        return out.sub_(unit * along).mul_(inverse).to(ctx.dtype), None, None

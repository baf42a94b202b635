"""Means of a few rows each, by weight: the tokens that come out of a merge, and the gradient of those that went in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .screen import Floats, Integers


class Members(NamedTuple):
    """The rows that go into each row that comes out: one that it starts from, and those that join it.

    Attributes:
        kept: (K,), the input row that each output row starts from.
        target: (E,), the output row that a row joins.
        rows: (2, E), the input rows that join, and those that their output rows start from.
        weight: (E,), by which they join, where the first has weight 1.
    """

    kept: Integers
    target: Integers
    rows: Integers
    weight: Floats

    def shares(self) -> tuple[Floats, Floats]:
        """Return the share of the mean that each joining row has, (E,), and the first row of its output, (E,)."""
        own = (1 / (1 + np.bincount(self.target, self.weight)))[self.target]
        return self.weight * own, own


def weighted_means(tokens: Tensor, members: Members, weights: Tensor | None = None) -> Tensor:
    """Return the weighted mean of the rows of `tokens` (R, C) that go into each output row, (K, C).

    `weights` (E,) are those of `members`, as a tensor through which a gradient is to run.
    """
    if torch.is_grad_enabled() and (tokens.requires_grad or (weights is not None and weights.requires_grad)):
        return _WeightedMeans.apply(tokens, weights, members)
    return _means(tokens, members)


def _means(tokens: Tensor, members: Members) -> Tensor:
    values = tokens.detach().numpy()
    out = torch.from_numpy(values.take(members.kept, axis=0))
    if members.target.shape[0] > 0:
        joining, first = values.take(members.rows, axis=0)
        joining -= first
        joining *= members.shares()[0].astype(values.dtype)[:, None]
        out.index_add_(0, torch.from_numpy(members.target), torch.from_numpy(joining))
    return out


class _WeightedMeans(torch.autograd.Function):
    @staticmethod
    def forward(tokens: Tensor, weights: Tensor | None, members: Members) -> Tensor:  # type: ignore[override]
        """Return the means."""
        return _means(tokens, members)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep tokens only where the gradient of the weights needs them, and no copy of them."""
        tokens, weights, ctx.members = inputs
        ctx.num_rows = tokens.shape[0]
        if weights is not None and weights.requires_grad:
            ctx.save_for_backward(tokens, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradients of the tokens and the weights."""
        members, of_tokens, of_weights = ctx.members, None, None
        share, own = (torch.from_numpy(values).to(grad.dtype) for values in members.shares())
        target, joining = torch.from_numpy(members.target), torch.from_numpy(members.rows[0])
        joined = grad.index_select(0, target)  # (E, C)
        if ctx.needs_input_grad[1]:
            # out = (x + sum(w * x_j)) / (1 + sum(w)), so that d out / d w_j = (x_j - out) / (1 + sum(w))
            tokens, out = ctx.saved_tensors
            difference = tokens.index_select(0, joining).sub_(out.index_select(0, target))
            of_weights = difference.mul_(joined).sum(dim=-1).mul_(own)
        if ctx.needs_input_grad[0]:
            of_tokens = grad.new_zeros((ctx.num_rows, grad.shape[1]))
            of_tokens.index_copy_(0, torch.from_numpy(members.kept), grad)
            joined.mul_(share[:, None])
            of_tokens.index_add_(0, joining, joined)
            of_tokens.index_add_(0, torch.from_numpy(members.rows[1]), joined, alpha=-1)
        return of_tokens, of_weights, None

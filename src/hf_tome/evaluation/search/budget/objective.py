"""How far a model's outputs are from what they should be: bounded, so that no sample rules the mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

LABEL_WEIGHT = 0.25
"""How much the divergence from the label counts, where there is one; the rest is that from the unmerged model's
output. The label says what is right, and the output, which is much less noisy, what merging has changed."""


def _logits(output: Tensor) -> Tensor:
    return output.double().softmax(dim=-1)


def _probabilities(output: Tensor) -> Tensor:
    output = output.double()
    return output / output.sum(dim=-1, keepdim=True)


def _scores(output: Tensor) -> Tensor:
    # A sigmoid of each candidate (SigLIP): ranked by their logits, as if one of them had to be right.
    return output.double().clamp(1e-12, 1 - 1e-12).logit().softmax(dim=-1)


def _independent(output: Tensor) -> Tensor:
    # (B, classes) -> (B, classes, 2): each class there or not
    output = output.double()
    output = output if bool(((output >= 0) & (output <= 1)).all()) else output.sigmoid()
    return torch.stack([output, 1 - output], dim=-1)


DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": _logits,
    "probabilities": _probabilities,
    "scores": _scores,
    "independent": _independent,
    "embeddings": lambda output: output.double(),
}
"""By `Job.outputs`, what a model gives as what is compared."""


def divergence(target: Tensor, output: Tensor, kind: str) -> Tensor:
    """Return the divergence of each sample (B,), from 0 to 1.

    That of embeddings is half of one minus their cosine, all others are Jensen-Shannon divergences in bits.
    """
    if kind == "embeddings":
        return (1 - cosine_similarity(target, output, dim=-1)) / 2
    middle = (target + output) / 2
    divergences = _entropy(middle) - (_entropy(target) + _entropy(output)) / 2
    return divergences.clamp(min=0).reshape(len(divergences), -1).mean(dim=1)


def label_divergence(labels: Sequence[Any], output: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return the divergence (B,) from the right class, 0 where there is no label of one class; and where there is."""
    has_label = torch.zeros(len(output), dtype=torch.bool)
    right = torch.zeros_like(output)
    if kind in ("logits", "probabilities", "scores"):
        for row, label in enumerate(labels):
            if isinstance(label, int) and 0 <= label < output.shape[-1]:
                has_label[row], right[row, label] = True, 1.0
    return divergence(right, output, kind) * has_label, has_label


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=-1) / math.log(2)

"""DiffRate's idea (Chen et al., ICCV 2023): learn by gradient how many tokens each block merges, here without labels.

A token that merged stays, with size 0, so that a gradient says what one more or one fewer would have changed. Whether
a token merges goes by its rank: exactly so forwards, by a sigmoid around the rate backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_tome.evaluation.search.budget.objective import divergence
from hf_tome.evaluation.search.budget.spaces.schedules import fit
from hf_tome.merging.similarity import similarity

SOFTNESS = 4.0
"""Ranks over which the gradient of a rate is spread."""
LEARNING_RATE = 0.1
MOST_ATTENDED = 5.0


def learn_rates(
    model: Any,
    batches: Sequence[Tensor],
    targets: Sequence[Tensor],
    cost: Callable[[list[int]], float],
    budget: float,
    epochs: int,
    protect: float,
) -> list[float]:
    """Return how many tokens each block of a ViT merges, relative to each other.

    Args:
        model: a `ViTForImageClassification`.
        batches: pixels (B, 3, H, W).
        targets: what the outputs should be, probabilities (B, classes) of the unmerged model.
        cost: of a schedule.
        budget: what it may cost; the rates are scaled to it in each step.
        epochs: passes over the batches.
        protect: as `MergeConfig.protect_attended`.
    """
    model.requires_grad_(False)
    num_tokens = model.vit.embeddings.position_embeddings.shape[1]
    # Nothing reads what merges in the last block, whose rate is 0.
    parameters = torch.zeros(len(model.vit.layers) - 1, requires_grad=True)
    optimizer = torch.optim.Adam([parameters], lr=LEARNING_RATE)
    for _ in range(epochs):
        for pixels, target in zip(batches, targets):
            weights = torch.cat([parameters.softmax(dim=0), torch.zeros(1)])
            r = fit(weights.tolist(), cost, budget, num_tokens)
            assert r is not None
            output = soft_logits(model, pixels, sum(r) * weights, protect).softmax(dim=-1)
            loss = divergence(target, output, "logits").mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [*parameters.softmax(dim=0).tolist(), 0.0]


def soft_logits(model: Any, pixels: Tensor, rates: Tensor, protect: float) -> Tensor:
    """Return the logits (B, classes) with rates (L,) of merged tokens, which may have a gradient."""
    x = model.vit.embeddings(pixels)  # (B, N, C)
    size, alive = x.new_ones(x.shape[:2]), x.shape[1]  # the first `alive` tokens are those that have not merged
    for layer, rate in zip(model.vit.layers, rates):
        attended, paid = attend(layer, x, size)
        x, size, alive = merge(x + attended, size, alive, rate, protect * paid)
        x = x + layer.mlp(layer.layernorm_after(x))
    return model.classifier(model.vit.layernorm(x)[:, 0])


def attend(layer: Any, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of attention (B, N, C), each key as often as its size says, and what the class token pays.

    Sizes multiply exponentials, which is adding their logarithms to the logits, but has a gradient at 0.
    """
    attention, hidden = layer.attention, layer.layernorm_before(x)
    query, key, value = (
        getattr(attention, name)(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)  # (B, H, N, d)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    logits = query @ key.transpose(-1, -2) * attention.scaling
    weights = size[:, None, None] * (logits - logits.amax(dim=-1, keepdim=True)).exp()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    paid = weights[:, :, 0].mean(dim=1).detach()  # (B, N)
    mean = paid[:, 1:].sum(dim=1, keepdim=True) / (size[:, 1:] > 0).sum(dim=1, keepdim=True)
    out = attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
    return out, (paid / mean).clamp(max=MOST_ATTENDED)


def merge(x: Tensor, size: Tensor, alive: int, rate: Tensor, importance: Tensor) -> tuple[Tensor, Tensor, int]:
    """Merge `rate` of the tokens, with the norm kept, and put those that merged behind the others.

    Returns tokens (B, N, C), their sizes (B, N), and how many have not merged.
    """
    a, b = torch.arange(2, alive, 2), torch.arange(1, alive, 2)
    r = min(round(rate.item()), (alive - 1) // 2)
    scores, _ = similarity(x.detach(), a, b, "cosine", importance=importance)
    best, partner = scores.max(dim=-1)  # (B, A)
    rank = best.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    merges = rank < r
    soft = ((rate - rank - 0.5) / SOFTNESS).sigmoid()
    share = merges.to(soft.dtype) + soft - soft.detach()
    x_a, x_b, moved = x[:, a], x[:, b], share * size[:, a]
    into = partner[..., None].expand_as(x_a)
    size_b = size[:, b].scatter_add(1, partner, moved)
    mean = (x_b * size[:, b, None]).scatter_add(1, into, x_a * moved[..., None]) / size_b[..., None]
    norm = (x_b.norm(dim=-1) * size[:, b]).scatter_add(1, partner, x_a.norm(dim=-1) * moved) / size_b
    mean = mean * (norm / mean.norm(dim=-1).clamp(min=1e-6))[..., None]
    order = merges.int().argsort(dim=1, stable=True)  # (B, A): those that stay first
    x_a = x_a.gather(1, order[..., None].expand_as(x_a))
    size_a = (size[:, a] * (1 - share)).gather(1, order)
    stay = len(a) - r
    x = torch.cat([x[:, :1], x_a[:, :stay], mean, x_a[:, stay:], x[:, alive:]], dim=1)
    size = torch.cat([size[:, :1], size_a[:, :stay], size_b, size_a[:, stay:], size[:, alive:]], dim=1)
    return x, size, alive - r

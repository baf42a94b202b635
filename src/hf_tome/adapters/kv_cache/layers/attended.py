"""How much attention entries receive from queries to come, and the sizes that keep it when entries merge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .entries import Entries
from .rotary import rotate

NUM_QUERIES = 128
"""Queries of the prompt, spread over it, that stand for those to come."""
NUM_KEPT_QUERIES = 64
"""Those of them that stay with the cache once its prompt has merged; every other one."""
AHEAD = 16
"""How far behind the last entry they are turned to."""


@dataclass(frozen=True)
class Turning:
    """How a model turns keys and queries by their positions.

    Attributes:
        frequencies: (F,); none where a layer has no position embedding.
        interleaved: see `rotate`.
        scale: what the model's cosines and sines are multiplied by (YaRN).
    """

    frequencies: Tensor
    interleaved: bool
    scale: float = 1.0

    def back(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Return keys (B, H, N, D) before RoPE, in float32; but for `scale`, which cosines do not see."""
        return rotate(keys, -positions, self.frequencies, self.interleaved)


@dataclass(frozen=True)
class FutureQueries:
    """Queries as they will come behind the cached entries.

    Attributes:
        queries: (B, H, G * Q, D), in the group of each KV head, scaled as attention scales logits.
        softcap: the bound of a tanh around logits, as in Gemma 2.
    """

    queries: Tensor
    softcap: float | None = None

    @classmethod
    def at(
        cls, queries: Tensor, num_kv_heads: int, last: Tensor, turning: Turning, scaling: float, softcap: float | None
    ) -> FutureQueries:
        """Turn queries before RoPE, (B, Hq, Q, D), to shortly behind the `last` positions, (B,)."""
        positions = (last + 1 + AHEAD)[:, None, None].expand(queries.shape[:3])
        num_turned = 2 * turning.frequencies.shape[0]
        turned = rotate(queries, positions, turning.frequencies, turning.interleaved)
        scale = torch.ones(turned.shape[-1], device=turned.device)
        scale[:num_turned] = turning.scale
        # (B, Hq, Q, D) -> (B, H, G * Q, D): the query heads of a group follow each other
        return cls((turned * scale * scaling).unflatten(1, (num_kv_heads, -1)).flatten(2, 3), softcap)

    def logits(self, keys: Tensor) -> Tensor:
        """Return the logits of keys (B, H, N, D), (B, H, G * Q, N), without sizes."""
        logits = self.queries @ keys.to(self.queries.dtype).transpose(2, 3)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def mass(self, entries: Entries) -> tuple[Tensor, Tensor]:
        """Return the mean attention that each entry receives, (B, H, N), and what logits are normalised by."""
        logits = self.logits(entries.keys) + entries.sizes.log()[:, :, None]
        total = logits.logsumexp(dim=-1, keepdim=True)  # (B, H, G * Q, 1)
        return (logits - total).exp_().mean(dim=2), total

    def fitted(self, keys: Tensor, mass: Tensor, total: Tensor, counts: Tensor) -> Tensor:
        """Return the sizes with which merged keys receive the attention of their members.

        Args:
            keys: (B, H, M, D) after merging.
            mass: (B, H, M), the attention of their members together.
            total: what logits are normalised by, from `mass`.
            counts: (B, H, M), the sizes where the keys receive too little to tell.
        """
        alone = (self.logits(keys) - total).exp_().mean(dim=2)
        tiny = torch.finfo(alone.dtype).tiny
        is_measurable = (alone > tiny) & (mass > tiny)
        return torch.where(is_measurable, mass / alone.clamp(min=tiny), counts)

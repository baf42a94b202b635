"""MaMe's step alone: matching and merging of tokens and sizes, against equations 2 to 9 in single precision.

The plain form is the paper's text, all matrices in float32, and decides ties by rounding noise; hf_tome's settles them
in double precision, pads images that keep unequal numbers, and keeps sizes. Tokens are a smooth field of random
directions and noise, threshold 0.8; inference mode, one thread. Pairs: the share of source and destination pairs that
are connected.

    python benchmarks/mame_step.py [--quick] [--out benchmarks/measured/mame_step.json]
"""

from __future__ import annotations

import torch
from common import Row, run
from torch import Tensor

from hf_tome.merging import matrix_matching
from hf_tome.profiling.rounds import Spread, interleave, ratio

CASES = ((1, 197, 192), (16, 197, 192), (8, 197, 768), (2, 577, 1024), (1, 1568, 768))
NOISE = (0.35, 0.6)
"""Of the noise that is added, as a share of the field: many pairs above the threshold, and few."""
THRESHOLD = 0.8
SMALL = 1 << 16
"""Fewer numbers take less than a millisecond, of which many have to be timed."""
COLUMNS = {
    "shape": "B, N, C",
    "noise": "noise",
    "pairs": "pairs",
    "left": "tokens left",
    "plain_ms": "plain ms",
    "merge_ms": "hf_tome ms",
    "cost": "time, of plain",
}


def plain_step(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Merge as the paper describes it, by its rule for batches; class token set aside. (B, N, C) -> (B, M, C)."""
    special, sources, destinations = x[:, :1], x[:, 1::2], x[:, 2::2]
    a, b = (tokens / tokens.norm(dim=-1, keepdim=True) for tokens in (destinations, sources))
    sparse = torch.relu(a @ b.transpose(1, 2) - THRESHOLD)  # (B, T, S)
    weights = sparse / (sparse.sum(dim=1, keepdim=True) + eps)
    count = (weights / (weights + eps)).sum(dim=1, keepdim=True)
    pruned = torch.relu(weights - weights.sum(dim=1, keepdim=True) / (count + eps))
    weights = pruned / (pruned.sum(dim=1, keepdim=True) + eps)
    preserved = (weights.sum(dim=1) == 0).any(dim=0)
    weights = weights * ~preserved
    fused = (destinations + weights @ sources) / (1 + weights.sum(dim=2, keepdim=True))
    return torch.cat([special, fused, sources[:, preserved]], dim=1)


def smooth_tokens(batch_size: int, num_tokens: int, channels: int, noise: float) -> Tensor:
    corners = torch.randn(batch_size, channels, num_tokens // 8)
    field = torch.nn.functional.interpolate(corners, size=num_tokens, mode="linear").transpose(1, 2)  # (B, N, C)
    return (field + noise * torch.randn(batch_size, num_tokens, channels)).contiguous()  # as a model's tokens are


def measure(quick: bool) -> list[Row]:
    rows = []
    for batch_size, num_tokens, channels in CASES:
        for noise in NOISE:
            torch.manual_seed(0)
            x = smooth_tokens(batch_size, num_tokens, channels, noise)
            runs = {
                "plain": lambda: plain_step(x),  # noqa: B023 (called in this round of the loop)
                "merge": lambda: matrix_matching(x, THRESHOLD, 1).merge(x),  # noqa: B023
            }
            with torch.inference_mode():
                rounds = 5 if quick else 300 if x.numel() < SMALL else 30
                seconds = interleave(runs, rounds, warmup=3, clock="process")
                match = matrix_matching(x, THRESHOLD, 1)
            rows.append(
                {
                    "shape": f"{batch_size}, {num_tokens}, {channels}",
                    "noise": noise,
                    "pairs": float((match.weights > 0).double().mean()),
                    "left": float((match.merge(x)[1] > 0).sum()) / batch_size,
                    "plain_ms": 1e3 * Spread.of(seconds["plain"]).median,
                    "merge_ms": 1e3 * Spread.of(seconds["merge"]).median,
                    "cost": ratio(seconds, "merge", "plain"),
                }
            )
    return rows


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="at most 1.1 times the plain form",
        reached=lambda row: row["cost"].median <= 1.1,
    )

"""Proportional attention against unmasked attention: sdpa with log(size) as its mask.

One head layout of ViT-B (12 heads of 64), float32, one thread. The log of the sizes is timed with the attention.

    python benchmarks/proportional_attention.py [--quick] [--out benchmarks/measured/proportional_attention.json]
"""

from __future__ import annotations

import torch
from common import Row, run
from torch.nn.functional import scaled_dot_product_attention

from hf_tome.adapters.encoders.attention import log_size
from hf_tome.profiling.rounds import Spread, interleave, ratio

CASES = ((8, 197), (4, 577), (2, 1025), (1, 1568))
COLUMNS = {"shape": "B, N", "plain_ms": "unmasked ms", "sized_ms": "proportional ms", "speed": "speed of unmasked"}


def measure(quick: bool) -> list[Row]:
    rows = []
    for batch_size, num_tokens in CASES:
        torch.manual_seed(0)
        # (B, N, H, d) -> (B, H, N, d), as a model's projections lie in memory
        query, key, value = (torch.randn(batch_size, num_tokens, 12, 64).transpose(1, 2) for _ in range(3))
        size = torch.randint(1, 5, (batch_size, num_tokens, 1)).float()

        def plain() -> None:
            scaled_dot_product_attention(query, key, value)  # noqa: B023 (called in this round of the loop)

        def sized() -> None:
            bias = log_size(size, proportional=True)[:, None, None]  # noqa: B023
            scaled_dot_product_attention(query, key, value, attn_mask=bias)  # noqa: B023

        with torch.inference_mode():
            seconds = interleave({"plain": plain, "sized": sized}, 5 if quick else 60, warmup=3, clock="process")
        rows.append(
            {
                "shape": f"{batch_size}, {num_tokens}",
                "plain_ms": 1e3 * Spread.of(seconds["plain"]).median,
                "sized_ms": 1e3 * Spread.of(seconds["sized"]).median,
                "speed": ratio(seconds, "plain", "sized"),
            }
        )
    return rows


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="at least 0.95 of the speed of unmasked attention",
        reached=lambda row: row["speed"].median >= 0.95,
    )

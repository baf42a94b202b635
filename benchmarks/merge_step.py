"""The merge step alone: matching and merging of tokens and sizes, against a plain gather and scatter.

The plain form follows the paper's text: sets A and B by slices, `gather` with an expanded index for the rows of A,
`scatter_reduce` for the sums, weighted by size. Exact: the largest difference in float64, of the output and of the
gradient of a random projection of it.

    python benchmarks/merge_step.py [--quick] [--out benchmarks/measured/merge_step.json]
"""

from __future__ import annotations

import torch
from common import Row, run
from torch import Tensor

from hf_tome.merging import bipartite_soft_matching
from hf_tome.profiling.rounds import Spread, interleave, ratio

CASES = ((8, 197, 768, 16), (4, 577, 1024, 23), (2, 1025, 1024, 40), (1, 1568, 768, 65))
COLUMNS = {
    "shape": "B, N, C, r",
    "plain_ms": "plain ms",
    "merge_ms": "hf_tome ms",
    "speedup": "times as fast",
    "difference": "largest difference",
    "gradient_difference": "of the gradient",
}


def plain_step(metric: Tensor, x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Merge as the paper describes it; class token protected. (B, N, D), (B, N, C), (B, N, 1) -> (B, N - r, ...)."""
    with torch.no_grad():
        metric = metric / metric.norm(dim=-1, keepdim=True)
        scores = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
        scores[:, 0] = -torch.inf
        strength, partner = scores.max(dim=-1)
        order = strength.argsort(dim=-1, descending=True)[..., None]
        unmerged, merged = order[:, r:].sort(dim=1).values, order[:, :r]
        into = partner[..., None].gather(1, merged)

    def merge_sum(values: Tensor) -> Tensor:
        a, b = values[:, ::2], values[:, 1::2]
        batch_size, _, channels = values.shape
        kept = a.gather(1, unmerged.expand(-1, -1, channels))
        members = a.gather(1, merged.expand(-1, -1, channels))
        b = b.scatter_reduce(1, into.expand(batch_size, r, channels), members, "sum")
        return torch.cat([kept, b], dim=1)

    out_size = merge_sum(size)
    return merge_sum(x * size) / out_size, out_size


def merge_step(metric: Tensor, x: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor]:
    return bipartite_soft_matching(metric, r, class_token=True).merge(x, size)


def differences(metric: Tensor, x: Tensor, size: Tensor, r: int) -> tuple[float, float]:
    outputs, gradients = [], []
    weight = torch.randn(x.shape[0], x.shape[1] - r, x.shape[2], dtype=torch.float64)
    for step in (plain_step, merge_step):
        start = x.double().requires_grad_()
        out, _ = step(metric.double(), start, size.double(), r)
        (out * weight).sum().backward()
        outputs.append(out.detach())
        gradients.append(start.grad)
    return tuple(float((ours - other).abs().max()) for ours, other in (outputs, gradients))  # type: ignore[return-value]


def measure(quick: bool) -> list[Row]:
    rows = []
    for batch_size, num_tokens, channels, r in CASES:
        torch.manual_seed(0)
        metric, x = torch.randn(batch_size, num_tokens, 64), torch.randn(batch_size, num_tokens, channels)
        size = torch.randint(1, 5, (batch_size, num_tokens, 1)).float()
        runs = {
            "plain": lambda: plain_step(metric, x, size, r),  # noqa: B023 (called in this round of the loop)
            "merge": lambda: merge_step(metric, x, size, r),  # noqa: B023
        }
        with torch.inference_mode():
            seconds = interleave(runs, 10 if quick else 200, warmup=5, clock="process")
        difference, gradient_difference = differences(metric, x, size, r)
        rows.append(
            {
                "shape": f"{batch_size}, {num_tokens}, {channels}, {r}",
                "plain_ms": 1e3 * Spread.of(seconds["plain"]).median,
                "merge_ms": 1e3 * Spread.of(seconds["merge"]).median,
                "speedup": ratio(seconds, "plain", "merge"),
                "difference": difference,
                "gradient_difference": gradient_difference,
            }
        )
    return rows


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="at least 2 times as fast, exact to 1e-12 in float64, gradient too",
        reached=lambda row: row["speedup"].median >= 2 and max(row["difference"], row["gradient_difference"]) <= 1e-12,
    )

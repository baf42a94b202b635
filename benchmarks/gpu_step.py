"""Matching and merging on a GPU, as a share of the block that they are in.

Half precision, random tokens and weights, eager mode: a transformers ViT layer with sdpa, the matching of its tokens,
and the merge of tokens and sizes, timed apart and interleaved. Above 5 % of a block a fused kernel would pay; what it
would gain is what the matching takes.

    python benchmarks/gpu_step.py [--quick] [--device cuda] [--out benchmarks/measured/gpu_step.json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from common import Row, check_gpu, run
from torch import Tensor
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTLayer

from hf_tome.merging import Merge, bipartite_soft_matching, matrix_matching
from hf_tome.profiling.rounds import Spread, interleave, ratio

CASES = (
    ("ViT-B 224", 32, 197, 768, 12, 16),
    ("ViT-L 224", 32, 197, 1024, 16, 8),
    ("ViT-L 512", 8, 1025, 1024, 16, 40),
    ("ViT-H/14 518", 4, 1370, 1280, 16, 40),
    ("VideoMAE-L", 4, 1568, 1024, 16, 65),
)
"""Model, B, N, C, heads, r."""
MAME_KEEPS = 0.7
MOST = 0.05
COLUMNS = {
    "model": "block of",
    "shape": "B, N, C",
    "dtype": "dtype",
    "method": "method",
    "block_ms": "block ms",
    "match_ms": "matching ms",
    "merge_ms": "merging ms",
    "match_share": "matching, of the block",
    "merge_share": "merging, of the block",
}


def matchings(tokens: Tensor, keys: Tensor, r: int) -> dict[str, Callable[[], Merge]]:
    """Return the matchings by name; ToMe's is of keys (B, N, d), MaMe's of tokens (B, N, C)."""
    return {
        f"ToMe r={r}": lambda: bipartite_soft_matching(keys, r, class_token=True),
        f"MaMe keep_ratio={MAME_KEEPS}": lambda: matrix_matching(tokens, 0.8, 1, keep_ratio=MAME_KEEPS),
    }


def measure_case(
    model: str, shape: tuple[int, int, int], heads: int, r: int, dtype: torch.dtype, device: str, rounds: int
) -> list[Row]:
    torch.manual_seed(0)
    width = shape[-1]
    config = ViTConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)
    config._attn_implementation = "sdpa"
    block = ViTLayer(config).eval().to(device, dtype)
    tokens = torch.randn(shape, device=device, dtype=dtype)
    keys = torch.randn((*shape[:2], width // heads), device=device, dtype=dtype)
    size = torch.ones((*shape[:2], 1), device=device)
    rows = []
    for method, match in matchings(tokens, keys, r).items():
        merge = match()
        runs = {"block": lambda: block(tokens), "match": match, "merge": lambda: merge.merge(tokens, size)}  # noqa: B023
        seconds = interleave(runs, rounds, warmup=5, device=device)
        times = {f"{name}_ms": 1e3 * Spread.of(values).median for name, values in seconds.items()}
        shares = {f"{name}_share": ratio(seconds, name, "block") for name in ("match", "merge")}
        names = {"model": model, "shape": ", ".join(map(str, shape)), "dtype": str(dtype)[6:], "method": method}
        rows.append({**names, **times, **shares})
    return rows


@torch.inference_mode()
def measure(options: argparse.Namespace) -> list[Row]:
    check_gpu(options.device)
    rows = []
    for model, batch_size, *size, heads, r in CASES[:1] if options.quick else CASES:
        shape = (1 if options.quick else batch_size, *size)
        for dtype in (torch.bfloat16,) if options.quick else (torch.float16, torch.bfloat16):
            rows += measure_case(model, shape, heads, r, dtype, options.device, 3 if options.quick else 50)
    return rows


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target=f"matching at most {MOST:.0%} of its block",
        reached=lambda row: row["match_share"].median <= MOST,
        device=lambda options: options.device,
        add_options=lambda parser: parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu"),
    )

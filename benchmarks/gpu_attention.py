"""Proportional attention on a GPU: a mask against extra channels, in each of sdpa's kernels.

Half precision, heads of 64, 16 of them. With a mask sdpa leaves its flash kernel; with log(size) in two extra channels
(padded to heads of 72) it need not. What each form costs, of unmasked flash attention, decides which one to use.

    python benchmarks/gpu_attention.py [--quick] [--device cuda] [--out benchmarks/measured/gpu_attention.json]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from common import Row, check_gpu, run
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend

from hf_tome.adapters.encoders.attention import log_size, with_bias_channel
from hf_tome.profiling.rounds import Spread, interleave, ratio

HEADS, HEAD_DIM = 16, 64
CASES = ((32, 197), (8, 1025), (4, 1370), (4, 1568), (1, 4097))
COLUMNS = {
    "shape": "B, N",
    "dtype": "dtype",
    "form": "form",
    "kernel": "kernel",
    "ms": "ms",
    "speed": "speed of unmasked flash",
    "why": "note",
}
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
FORMS = ("unmasked", "mask", "channels")


def make_form(form: str, query: Tensor, key: Tensor, value: Tensor, size: Tensor) -> Callable[[], Tensor]:
    """Return one way to attend; the log of the sizes, the mask and the channels are made and timed with it."""

    def unmasked() -> Tensor:
        return attend(query, key, value)

    def mask() -> Tensor:
        bias = log_size(size, proportional=True)[:, None, None].to(query.dtype)  # (B, N) -> (B, 1, 1, N)
        return attend(query, key, value, attn_mask=bias)

    def channels() -> Tensor:
        scaling = HEAD_DIM**-0.5
        longer = with_bias_channel(query, key, value, log_size(size, proportional=True), scaling)
        return attend(*longer, scale=scaling)[..., :HEAD_DIM]

    return {"unmasked": unmasked, "mask": mask, "channels": channels}[form]


def in_kernel(kernel: str, call: Callable[[], Tensor]) -> Tensor:
    with sdpa_kernel(KERNELS[kernel]):
        return call()


def measure_case(batch_size: int, num_tokens: int, dtype: torch.dtype, device: str, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    shape = (batch_size, num_tokens, HEADS, HEAD_DIM)  # -> (B, H, N, d), as a model's projections lie in memory
    tensors = [torch.randn(shape, device=device, dtype=dtype).transpose(1, 2) for _ in range(3)]
    size = torch.randint(1, 5, (batch_size, num_tokens, 1), device=device).float()
    runs, refused = {}, {}
    for form in FORMS:
        for kernel in KERNELS:
            call = partial(in_kernel, kernel, make_form(form, *tensors, size))
            try:
                call()
            except RuntimeError as error:  # this kernel does not take this form
                refused[form, kernel] = " ".join(str(error).split())[:80]
            else:
                runs[f"{form}, {kernel}"] = call
    seconds = interleave(runs, rounds, warmup=5, device=device)
    base = "unmasked, flash" if "unmasked, flash" in runs else next(iter(runs))
    rows: list[Row] = []
    for form in FORMS:
        for kernel in KERNELS:
            row: Row = {
                "shape": f"{batch_size}, {num_tokens}",
                "form": form,
                "kernel": kernel,
                "dtype": str(dtype)[6:],
            }
            name = f"{form}, {kernel}"
            if name in seconds:
                row |= {"ms": 1e3 * Spread.of(seconds[name]).median, "speed": ratio(seconds, base, name)}
            rows.append(row | {"why": refused.get((form, kernel))})
    return rows


@torch.inference_mode()
def measure(options: argparse.Namespace) -> list[Row]:
    check_gpu(options.device)
    cases, dtypes = CASES, (torch.float16, torch.bfloat16)
    if options.quick:
        cases, dtypes = CASES[:1], (torch.bfloat16,)
    rounds = 3 if options.quick else 50
    return [row for case in cases for dtype in dtypes for row in measure_case(*case, dtype, options.device, rounds)]


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="none: which form of proportional attention is the fastest, and in which kernel",
        device=lambda options: options.device,
        add_options=lambda parser: parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu"),
    )

"""What merging costs in pictures: the digits DiT, the same noise unmerged and merged.

PSNR and SSIM to the unmerged pictures, and the share that the shipped classifier reads right. The first rows are on
`--pictures` pictures, the others on `--more`; the interval is that of the mean PSNR (95 %, normal). All rows merge
tokens of a grid of 16x16 in tiles of 8, half of them and around self-attention unless they say otherwise.
"""

from __future__ import annotations

import argparse
import sys

import torch
from common import Row, run
from torch import Tensor

import hf_tome
from hf_tome.config import parse_config
from hf_tome.demo.digits_dit import load_digits_dit
from hf_tome.demo.digits_pictures import count_right, draw_digits
from hf_tome.evaluation.metrics.pictures import psnr, ssim

DIGIT_COLUMNS = {
    "pictures": "pictures",
    "psnr": "PSNR dB",
    "interval": "+-",
    "ssim": "SSIM",
    "right": "read right %",
}
COMMON = "min_tokens=0,tile=8"
HALF = f"ratio=0.5,{COMMON}"
BLOCK = f"{HALF},modules=block"
PLAIN = "proportional_attention=false"
MAIN = {
    "attention": HALF,
    "attention, without log(size)": f"{HALF},{PLAIN}",
    "block": BLOCK,
}
MORE = {
    "attention, a quarter": f"ratio=0.25,{COMMON}",
    "attention, 0.7": f"ratio=0.7,{COMMON}",
    "attention, one tile": "ratio=0.5,min_tokens=0,tile=none",
    "keys and values": f"{HALF},modules=kv",
    "attention, combine='keep_one'": f"{HALF},combine=keep_one",
    "attention, late half of the steps": f"{HALF},steps=(0.5,1.0)",
    "block, a quarter": f"ratio=0.25,{COMMON},modules=block",
    "block, every second": f"{BLOCK},every=2",
    "block, without log(size)": f"{BLOCK},{PLAIN}",
    "block, combine='keep_one'": f"{BLOCK},combine=keep_one",
    "block, late half of the steps": f"{BLOCK},steps=(0.5,1.0)",
    "MaMe, attention": f"method=mame,keep_ratio=0.5,{COMMON},{PLAIN}",
    "MaMe, attention, log(size)": f"method=mame,keep_ratio=0.5,{COMMON},proportional_attention=true",
    "MaMe, attention, threshold 0.8": f"method=mame,threshold=0.8,{COMMON}",
    "MaMe, block": f"method=mame,keep_ratio=0.5,{COMMON},modules=block,{PLAIN}",
    "MaMe, block, log(size)": f"method=mame,keep_ratio=0.5,{COMMON},modules=block,proportional_attention=true",
    "random pruning, attention": f"method=random_prune,{HALF}",
    "random pruning, block": f"method=random_prune,{BLOCK}",
    "downsampling, attention": f"method=downsample,{HALF}",
    "downsampling, block": f"method=downsample,{BLOCK}",
}


def measure(options: argparse.Namespace) -> list[Row]:
    pictures, more = (2, 2) if options.quick else (options.pictures, options.more)
    labels = torch.arange(pictures) % 10
    unmerged = draw_digits(load_digits_dit(), labels)
    rows: list[Row] = [{"name": "unmerged", "pictures": pictures, "right": _right(unmerged, labels)}]
    for names, count in ((MAIN, pictures), (MORE, more)):
        for name, text in names.items():
            rows.append({"name": name, **_row(text, labels[:count], unmerged[:count])})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _right(drawn: Tensor, labels: Tensor) -> float:
    return 100 * count_right(drawn, labels) / len(labels)


def _row(text: str, labels: Tensor, unmerged: Tensor) -> Row:
    model = hf_tome.apply(load_digits_dit(), parse_config(text))
    drawn = draw_digits(model, labels)
    (tower,) = hf_tome.report(model).towers
    tokens = tower.levels[0].after if tower.levels else None
    return {**compare_digits(drawn, unmerged, labels), "tokens": tokens, "config": text}


def compare_digits(drawn: Tensor, unmerged: Tensor, labels: Tensor) -> Row:
    """Return how near merged digits are to the unmerged ones of the same noise, the columns of `DIGIT_COLUMNS`."""
    decibels = psnr(drawn, unmerged)
    return {
        "pictures": len(labels),
        "psnr": decibels.mean().item(),
        "interval": 1.96 * decibels.std().item() / len(labels) ** 0.5,
        "ssim": ssim(drawn, unmerged).mean().item(),
        "right": _right(drawn, labels),
    }


def reached(row: Row) -> bool | None:
    return row["psnr"] >= 24.5 if row["name"] == "attention" else None


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        {"name": "merged", **DIGIT_COLUMNS, "tokens": "tokens, of 256"},
        target="half of attention merged: at least 24.5 dB to the unmerged picture",
        reached=reached,
        add_options=lambda parser: (
            parser.add_argument("--pictures", type=int, default=200, help="pictures of the main rows"),
            parser.add_argument("--more", type=int, default=60, help="pictures of the other rows"),
        ),
    )

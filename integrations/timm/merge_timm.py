"""Merge tokens in a timm ViT: what the images are taken for, merged and unmerged, and how long both take.

    python integrations/timm/merge_timm.py photo1.jpg photo2.jpg --model vit_base_patch16_224 --config r=13
    python integrations/timm/merge_timm.py --model vit_base_patch16_224 --random --config r=8 --config r=16

The model is timm's own; `TimmWrapperForImageClassification` of transformers is merged in the same way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import timm
import torch
from PIL import Image

import hf_tome
from hf_tome.config import parse_config


def load_pixels(model: torch.nn.Module, paths: list[str], batch_size: int) -> torch.Tensor:
    """Return images (B, 3, H, W), preprocessed as the model's own settings say, or noise where there are none."""
    settings = timm.data.resolve_model_data_config(model)
    if not paths:
        return torch.randn(batch_size, *settings["input_size"], generator=torch.Generator().manual_seed(0))
    transform = timm.data.create_transform(**settings, is_training=False)
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])


def seconds(model: torch.nn.Module, pixels: torch.Tensor) -> float:
    """Return the processor time of one forward pass, which neighbours on a shared machine do not lengthen."""
    begun = time.process_time()
    model(pixels)
    return time.process_time() - begun


@torch.inference_mode()
def main(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="none for noise, which is enough to measure speed")
    parser.add_argument("--model", default="vit_base_patch16_224", help="a name of timm.list_models('*vit*')")
    parser.add_argument("--random", action="store_true", help="random weights instead of the pretrained ones")
    parser.add_argument("--config", action="append", help="what to merge, as in r=13; may be given many times")
    parser.add_argument("--batch-size", type=int, default=8, help="of noise")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = timm.create_model(args.model, pretrained=not args.random).eval()
    pixels = load_pixels(model, args.images, args.batch_size)
    configs = {"unmerged": parse_config("r=0"), **{text: parse_config(text) for text in args.config or ["r=13"]}}

    rows = {}
    for name, config in configs.items():  # the first pass of each warms up, and is not timed
        hf_tome.apply(model, config)
        classes = model(pixels).argmax(-1).tolist()
        report = hf_tome.report(model).towers[0]
        rows[name] = {"tokens": report.tokens_out, "gflops": round(report.gflops, 2), "seconds": []}
        if args.images:
            rows[name]["classes"] = dict(zip(args.images, classes))
    for _ in range(args.repeats):  # interleaved, so that what slows the machine down slows all alike
        for name, config in configs.items():
            rows[name]["seconds"].append(seconds(hf_tome.apply(model, config), pixels))
    for row in rows.values():
        row["seconds"] = round(statistics.median(row["seconds"]), 3)
        row["speedup"] = round(rows["unmerged"]["seconds"] / row["seconds"], 2)
    return {"model": args.model, "batch": len(pixels), "threads": torch.get_num_threads(), "rows": rows}


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))

"""Fewer image tokens in a vision-language model: time to first token, decoding, memory and cache.

A LLaVA with random weights in LLaVA-1.5's proportions, at a quarter of its widths and half of its depths: CLIP at
336 px with patches of 14 (256 wide, 12 blocks, features before the last one) and Llama (1024 wide, 16 layers, heads of
128, 8,016 words), 211 M parameters in the language model and 10 M in the tower (LLaVA-1.5-7B: 6,608 M and 304 M). One
image and 40 text tokens, float32, sdpa, one thread. First token: image and prompt in, logits out. Decoding: 16 tokens
on top of that cache. Variants run interleaved; ratios are of runs of the same round. Peak: weights and live tensors of
the first token. MaMe merges what is similar, so the image has structure (gradients, edges, some noise); with random
weights its thresholds mean nothing for a trained model, only the tokens that they leave do. The full shape is
`--preset 7b --device cuda --dtype float16`, which has not been run.

    python benchmarks/vlm.py [--quick] [--preset scaled|7b] [--device cuda] [--dtype float16] [--out FILE]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import Row, run
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from hf_tome import MergeConfig, apply
from hf_tome.adapters.cache_names import CACHE, cache_of
from hf_tome.config import format_config
from hf_tome.profiling.measure import MIB, peak_memory_mib
from hf_tome.profiling.rounds import Spread, interleave, ratio
from hf_tome.profiling.slice_oracle import shallow_copy

VISION = {"image_size": 336, "patch_size": 14}
PRESETS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "7b": (
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "intermediate_size": 11008,
            "vocab_size": 32064,
        },
    ),
    "scaled": (
        {"hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 1024},
        {
            "hidden_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 8,
            "intermediate_size": 2752,
            "vocab_size": 8016,
        },
    ),
}
"""CLIP's and Llama's sizes: LLaVA-1.5-7B, and a quarter of its widths and half of its depths."""

THRESHOLDS = (0.95, 0.9, 0.85)
CONFIGS: dict[str, tuple[MergeConfig, ...]] = {
    # As many tokens of 576 in all: 8, 16 and 32 in each of 11 blocks, or 4, 8 and 16 in each of 23.
    "scaled": tuple(MergeConfig(r=r) for r in (8, 16, 32)),
    "7b": tuple(MergeConfig(r=r) for r in (4, 8, 16)),
}
EVERYWHERE = (
    *(MergeConfig(method="mame", threshold=threshold) for threshold in THRESHOLDS),
    *(MergeConfig(r=r, where="projected") for r in (176, 352)),
)
TEXT_TOKENS, NEW_TOKENS = 40, 16
COLUMNS = {
    "config": "config",
    "image_tokens": "image tokens",
    "first_token_s": "first token s",
    "first_token_speedup": "speed-up",
    "tokens_per_second": "tokens/s",
    "decode_speedup": "speed-up of decoding",
    "peak_mib": "peak MiB",
    "cache_mib": "cache MiB",
}


def build(preset: str, device: str, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    vision, text = PRESETS[preset]
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, **VISION),
        text_config=LlamaConfig(**text),
        image_token_index=text["vocab_size"] - 1,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    )
    with torch.device(device):
        return LlavaForConditionalGeneration._from_config(config, dtype=dtype).eval()


def structured_image(side: int) -> Tensor:
    """Return an image (1, 3, H, W) with a sky, a ground with stripes, a disc, and some noise."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    sky = torch.stack([0.5 * y, 0.7 * y + 0.2, 0.2 * y + 0.8])
    stripes = torch.where((x * 14).floor() % 2 == 0, 0.8, -0.6)
    ground = torch.stack([stripes, 0.4 * stripes + 0.2 * y, -0.5 + 0.1 * x])
    disc = ((x - 0.4) ** 2 + (y + 0.4) ** 2 < 0.06).float()
    image = torch.where(y < 0.2, sky, ground) * (1 - disc) + disc * torch.tensor([1.0, 0.9, 0.3])[:, None, None]
    return (image + 0.2 * torch.randn(3, side, side, generator=generator))[None]


class Variant:
    """One config on the same weights: the first token, and the tokens that follow it."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], config: MergeConfig | None):
        self.model = shallow_copy(model) if config is None else apply(shallow_copy(model), config)
        self.inputs = inputs
        self.config = config
        out = self.first_token()
        self.cache: Any = cache_of(out)
        self.length = self.cache.get_seq_length()
        self.next = out.logits[:, -1:].argmax(-1)

    def first_token(self) -> Any:
        return self.model(**self.inputs, use_cache=True, logits_to_keep=1)

    def decode(self) -> None:
        token = self.next
        for _ in range(NEW_TOKENS):
            out = self.model(input_ids=token, **{CACHE: self.cache}, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        self.cache.crop(self.length - self.cache.get_seq_length())  # as it was, for the next round

    @property
    def image_tokens(self) -> int:
        return self.length - TEXT_TOKENS

    @property
    def cache_mib(self) -> float:
        # Counted from shapes: a cropped cache may be a view of a longer one.
        layers = [tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in layers) / MIB


@torch.inference_mode()
def measure(options: argparse.Namespace) -> list[Row]:
    model = build(options.preset, options.device, getattr(torch, options.dtype))
    image_token, side = model.config.image_token_id, VISION["image_size"]
    text = torch.arange(3, 3 + TEXT_TOKENS)
    ids = torch.cat([text[:8], torch.full(((side // VISION["patch_size"]) ** 2,), image_token), text[8:]])[None]
    pixels = structured_image(side).to(options.device, model.dtype)
    inputs = {"input_ids": ids.to(options.device), "pixel_values": pixels}
    configs: list[MergeConfig | None] = [None, *CONFIGS[options.preset], *EVERYWHERE]
    if options.quick:
        configs = [None, CONFIGS[options.preset][1], EVERYWHERE[1]]
    variants = {"unmerged" if c is None else format_config(c): Variant(model, inputs, c) for c in configs}
    rounds = options.rounds or (2 if options.quick else 9)
    clock = "process" if options.device == "cpu" else "wall"

    def timed(runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        return interleave(runs, rounds, warmup=1, clock=clock, device=options.device)

    first = timed({name: variant.first_token for name, variant in variants.items()})
    decode = timed({name: variant.decode for name, variant in variants.items()})
    return [row(name, variant, first, decode) for name, variant in variants.items()]


def row(name: str, variant: Variant, first: dict[str, list[float]], decode: dict[str, list[float]]) -> Row:
    merged = variant.config is not None
    return {
        "config": name,
        "image_tokens": variant.image_tokens,
        "first_token_s": Spread.of(first[name]),
        "first_token_speedup": ratio(first, "unmerged", name) if merged else None,
        "tokens_per_second": NEW_TOKENS / statistics.median(decode[name]),
        "decode_speedup": ratio(decode, "unmerged", name) if merged else None,
        "peak_mib": peak_memory_mib(variant.first_token, variant.model, variant.model.device),
        "cache_mib": variant.cache_mib,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", choices=PRESETS, default="scaled", help="the model's shape")
    parser.add_argument("--device", default="cpu", help="cpu, which counts processor time, or cuda")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, help="timed runs of each variant")


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="none: what fewer image tokens save, against r and threshold",
        device=lambda options: options.device,
        add_options=add_options,
    )

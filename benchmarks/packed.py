"""Packed towers: merging within each image, of patches or of whole groups of 2 x 2, against the slice oracle.

Towers of Qwen3-VL and Qwen2.5-VL with random weights, at half their width and a third of their blocks, and Qwen3-VL
with a language model of four blocks; one image, float32, sdpa, one thread. Tokens, or groups, are restored before
the patch merger (and the deepstack mergers of Qwen3-VL), or groups stay merged: in the tower, to the language model.
The oracle cuts to the same numbers and fills what is restored up with zeros. The last columns are the tokens that
the language model gets, with those of the text, and how much faster it alone is in the same passes.

    python benchmarks/packed.py [--quick] [--only TEXT ...] [--out benchmarks/measured/packed.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from statistics import median
from typing import Any

import torch
from common import TOWER_COLUMNS, Row, run, time_tower, tower_row
from torch import nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig, Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLVisionModel

from hf_tome import MergeConfig
from hf_tome.config import format_config

SIDE = 32
TOWERS: dict[str, tuple[Any, Any, int]] = {
    "Qwen3-VL": (
        Qwen3VLVisionModel,
        Qwen3VLVisionConfig(
            depth=9,
            hidden_size=576,
            intermediate_size=2152,
            num_heads=8,
            out_hidden_size=1024,
            deepstack_visual_indexes=[2, 5, 7],
        ),
        16,
    ),
    "Qwen2.5-VL": (
        Qwen2_5_VisionTransformerPretrainedModel,
        Qwen2_5_VLVisionConfig(
            depth=9,
            hidden_size=640,
            intermediate_size=1710,
            num_heads=8,
            out_hidden_size=1024,
            fullatt_block_indexes=[2, 5, 8],
        ),
        14,
    ),
}
"""Class, config and patch size."""
HALF = {"ratio": 0.5, "layers": [1]}
RESTORED = (MergeConfig(**HALF), MergeConfig(r=57))
CONFIGS = (
    *RESTORED,
    MergeConfig(**HALF, where="groups", restore=True),
    MergeConfig(**HALF, where="groups"),
    MergeConfig(r=14, where="groups"),
)
WHOLE_CONFIGS = (
    RESTORED[0],
    MergeConfig(**HALF, where="groups"),
    MergeConfig(r=14, where="groups"),
    MergeConfig(ratio=0.5, where="projected"),
)
IMAGE_TOKEN, NUM_TEXT = 990, 16
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 1000,
    "rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 10000.0},
}
COLUMNS = {
    "model": "model",
    **TOWER_COLUMNS,
    "language_tokens": "language model's tokens",
    "language_speedup": "its speed-up",
}


def build(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a tower and the patches of one image."""
    torch.manual_seed(0)
    tower, config, patch = TOWERS[name]
    patches = torch.randn(SIDE * SIDE, 3 * 2 * patch * patch)
    return tower(config).eval(), {"hidden_states": patches, "grid_thw": torch.tensor([[1, SIDE, SIDE]])}


def build_whole() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return Qwen3-VL's tower with a language model, and a prompt with one image."""
    torch.manual_seed(0)
    vision = TOWERS["Qwen3-VL"][1].to_dict()
    config = Qwen3VLConfig(vision_config=vision, text_config=TEXT, image_token_id=IMAGE_TOKEN)
    model = Qwen3VLForConditionalGeneration(config).eval()
    ids = torch.cat([torch.full((1, SIDE * SIDE // 4), IMAGE_TOKEN), torch.randint(900, (1, NUM_TEXT))], dim=1)
    return model, {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE_TOKEN).long(),
        "pixel_values": torch.randn(SIDE * SIDE, 3 * 2 * 16 * 16),
        "image_grid_thw": torch.tensor([[1, SIDE, SIDE]]),
    }


def timed_by_length(module: nn.Module) -> dict[int, list[float]]:
    """Let a language model write down the processor time of each pass, by the number of its tokens."""
    begun: list[float] = []
    seconds: dict[int, list[float]] = defaultdict(list)
    module.register_forward_pre_hook(lambda *_: begun.append(time.process_time()))

    def write_down(module: nn.Module, args: Any, out: Any) -> None:
        seconds[out.last_hidden_state.shape[1]].append(time.process_time() - begun.pop())

    module.register_forward_hook(write_down)
    return seconds


def cases(quick: bool) -> dict[str, tuple[str, MergeConfig]]:
    """Return what is measured: models and configs by the names of their rows."""
    towers = [(f"{name}, tower", config) for name in TOWERS for config in CONFIGS]
    listed = [*towers, *(("Qwen3-VL", config) for config in WHOLE_CONFIGS)]
    chosen = [listed[0], listed[3], listed[-3]] if quick else listed
    return {row_name(model, format_config(config)): (model, config) for model, config in chosen}


def row_name(model: str, config: str) -> str:
    return f"{model}: {config}"


def measure(options: argparse.Namespace) -> list[Row]:
    rounds, earlier = 3 if options.quick else 5, {}
    if options.only and options.out.is_file():
        rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"]
        earlier = {row_name(row["model"], row["config"]): row for row in rows}
    measured = []
    for name, (model, config) in cases(options.quick).items():
        if options.only and not any(text in name for text in options.only):
            measured += [earlier[name]] if name in earlier else []
        elif model == "Qwen3-VL":
            measured.append(measure_whole(config, rounds))
        else:
            tower, inputs = build(model.removesuffix(", tower"))
            measured.append({"model": model, **tower_row(config, time_tower(tower, inputs, config, rounds))})
    return measured


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        nargs="+",
        help="measure the rows alone that contain one of these texts; others stay as --out has them",
    )


def measure_whole(config: MergeConfig, rounds: int) -> Row:
    """Return the row of a config for tower and language model together."""
    model, inputs = build_whole()
    seconds = timed_by_length(model.model.language_model)
    row = tower_row(config, time_tower(model, inputs, config, rounds))
    counts = sorted(seconds, reverse=True)  # without merging and, where it gets fewer tokens, with
    before, after = (median(seconds[count]) for count in (counts[0], counts[-1]))
    return {
        "model": "Qwen3-VL",
        **row,
        "language_tokens": " to ".join(map(str, counts)),
        "language_speedup": before / after if len(counts) > 1 else None,
    }


def reached(row: Row) -> bool:
    share = row["oracle_share"]
    return (share["median"] if isinstance(share, dict) else share.median) >= 0.9


if __name__ == "__main__":
    target = "90 % of the slice oracle with half of the tokens"
    run(__doc__, measure, COLUMNS, target=target, reached=reached, add_options=add_options)

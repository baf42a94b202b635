"""Blocks of denoisers, half of their tokens merged, against the slice oracle and tomesd.

The oracle runs the block on the first half of the tokens and merges nothing. Processor time in interleaved rounds, one
thread, random weights and inputs, 4,096 tokens (64x64): a block of Stable Diffusion 1.5 (320 channels), and blocks
as Flux's (512 wide, 512 text tokens). tomesd (its own defaults, ratio 0.5) takes the first alone. A GPU was not there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from common import Row, run
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

from hf_tome import MergeConfig
from hf_tome.adapters.diffusion.denoisers import BASIC, DENOISERS, FLUX
from hf_tome.adapters.diffusion.local import BiasedAttention, MergedBlock
from hf_tome.adapters.diffusion.matching import step_seed
from hf_tome.adapters.diffusion.plan import DenoiserPlan, argument_names
from hf_tome.adapters.diffusion.rows import BlockRow, Call, Grid
from hf_tome.adapters.diffusion.state import AttentionDetail, BlockDetail, DenoiserPass
from hf_tome.patching.plans import Patch, Target, attach
from hf_tome.patching.recorder import Recorder
from hf_tome.profiling.rounds import interleave, ratio

SIDE, TEXT = 64, 512
TOKENS = SIDE * SIDE
METHODS = {
    "hf_tome": MergeConfig(ratio=0.5),
    "hf_tome, without log(size)": MergeConfig(ratio=0.5, proportional_attention=False),
    "hf_tome, MaMe": MergeConfig(method="mame", keep_ratio=0.5, proportional_attention=False),
}


def merge(block: Any, row: BlockRow, modules: str, config: MergeConfig) -> Any:
    """Patch one block as `apply` does in a denoiser, within a pass."""
    state = DenoiserPass()
    state.grid, state.seed = Grid((SIDE, SIDE), TOKENS), step_seed(500, 0, torch.device("cpu"))
    proportional = config.proportional_attention is not False
    whole = modules == "block"
    call = row.block if whole else row.attention or Call(gives_change=False)
    part = block if whole else block.attn1
    detail = BlockDetail(call, modules, argument_names(part), state, "", torch.tensor(0), 0, proportional)
    patches = [Patch(part, MergedBlock, 0, detail)]
    if whole and proportional:
        inner = [getattr(block, name) for name in call.attentions]
        patches += [Patch(a, BiasedAttention, 0, AttentionDetail(detail, argument_names(a))) for a in inner]
    plan = DenoiserPlan(config, DENOISERS["UNet2DConditionModel"], (), modules, proportional, 1)
    attach(Target("", block, plan, Recorder(), patches=tuple(patches)))
    return block


def tomesd_block() -> Any:
    from tomesd.patch import make_diffusers_tome_block

    block = basic()
    block.__class__ = make_diffusers_tome_block(type(block))
    block._tome_info = {
        "size": (SIDE, SIDE),
        "hooks": [],
        "args": {
            **{"ratio": 0.5, "max_downsample": 1, "sx": 2, "sy": 2, "use_rand": True, "generator": None},
            **{"merge_attn": True, "merge_crossattn": False, "merge_mlp": False},
        },
    }
    return block


def basic() -> BasicTransformerBlock:
    torch.manual_seed(0)
    return BasicTransformerBlock(320, 8, 40, cross_attention_dim=768).eval()


def flux(cls: Any) -> Any:
    torch.manual_seed(0)
    return cls(dim=512, num_attention_heads=8, attention_head_dim=64).eval()


def half_attention(block: Any) -> Any:
    """Let self-attention see the first half of the tokens, and give its output twice."""
    attention = block.attn1
    forward = attention.forward
    attention.forward = lambda x, *args, **kwargs: forward(x[:, : x.shape[1] // 2], *args, **kwargs).repeat(1, 2, 1)
    return block


def cases() -> dict[str, dict[str, Callable[[], Any]]]:
    """Return what is timed: block -> variant -> a call."""
    x, text = torch.randn(2, TOKENS, 320), torch.randn(2, 77, 768)
    all_cases: dict[str, dict[str, Callable[[], Any]]] = {}

    def call(block: Any, **inputs: Any) -> Callable[[], Any]:
        return lambda: block(**inputs)

    whole = {"hidden_states": x, "encoder_hidden_states": text}
    part = {**whole, "hidden_states": x[:, : TOKENS // 2]}
    all_cases["SD 1.5, around attention"] = {
        "unmerged": call(basic(), **whole),
        "oracle": call(half_attention(basic()), **whole),
        **{name: call(merge(basic(), BASIC, "attention", config), **whole) for name, config in METHODS.items()},
        "tomesd": call(tomesd_block(), **whole),
    }
    all_cases["SD 1.5, whole block"] = {
        "unmerged": all_cases["SD 1.5, around attention"]["unmerged"],
        "oracle": call(basic(), **part),
        **{name: call(merge(basic(), BASIC, "block", config), **whole) for name, config in METHODS.items()},
    }
    tokens, words, temb = torch.randn(1, TOKENS, 512), torch.randn(1, TEXT, 512), torch.randn(1, 512)
    for name, cls, row in (
        ("Flux, double block", FluxTransformerBlock, FLUX[0]),
        ("Flux, single block", FluxSingleTransformerBlock, FLUX[1]),
    ):

        def inputs(count: int) -> dict[str, Any]:
            angles = torch.randn(TEXT + count, 64)
            rotary = (angles.cos(), angles.sin())
            stream = {"hidden_states": tokens[:, :count], "encoder_hidden_states": words, "temb": temb}
            return {**stream, "image_rotary_emb": rotary}

        all_cases[name] = {
            "unmerged": call(flux(cls), **inputs(TOKENS)),
            "oracle": call(flux(cls), **inputs(TOKENS // 2)),
            **{key: call(merge(flux(cls), row, "block", config), **inputs(TOKENS)) for key, config in METHODS.items()},
        }
    return all_cases


@torch.inference_mode()
def measure(quick: bool) -> list[Row]:
    rows: list[Row] = []
    for name, calls in cases().items():
        seconds = interleave(calls, 1 if quick else 7, warmup=1, clock="process")
        for variant, values in seconds.items():
            rows.append(
                {
                    "block": name,
                    "variant": variant,
                    "seconds": median(values),
                    "speedup": ratio(seconds, "unmerged", variant),
                    "share": None if variant in ("unmerged", "oracle") else ratio(seconds, "oracle", variant),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def reached(row: Row) -> bool | None:
    if row["variant"] != "hf_tome":
        return None
    return row["share"].median >= (0.92 if "Flux" in row["block"] else 0.95)


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        {
            "block": "block",
            "variant": "variant",
            "seconds": "seconds",
            "speedup": "speed-up",
            "share": "share of the oracle's speed",
        },
        target="95 % of the slice oracle's speed in a block of SD 1.5, 92 % in Flux's",
        reached=reached,
    )

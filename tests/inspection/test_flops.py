"""The published GFLOPs, hand counts, and torch's own counter on a small model of every family."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.kosmos2 import modeling_kosmos2 as kosmos_2

from hf_tome import apply, report
from hf_tome.adapters.encoders.families.registry import FAMILIES as ROWS
from hf_tome.config import MergeConfig
from hf_tome.inspection.flops import (
    EncoderShape,
    FlopCount,
    count_flops,
    encoder_shape,
    gflops,
    merged_flops,
    planned_tokens,
    token_counts,
)
from hf_tome.merging.mame.matching import kept_tokens

PUBLISHED = Path(__file__).parents[1] / "data" / "published_flops.json"


def plain_shape(layers: int, width: int, heads: int, tokens: int, patch_values: int, classes: int) -> EncoderShape:
    return EncoderShape(
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        intermediate_size=4 * width,
        num_tokens=tokens,
        num_prefix_tokens=1,
        patch_flops=(tokens - 1) * patch_values * width,
        head_flops=width * classes,
    )


DEIT_TINY = plain_shape(12, 192, 3, 197, 16 * 16 * 3, 1000)
DEIT_SMALL = plain_shape(12, 384, 6, 197, 16 * 16 * 3, 1000)
VIT_BASE = plain_shape(12, 768, 12, 197, 16 * 16 * 3, 1000)
VIT_LARGE = plain_shape(24, 1024, 16, 197, 16 * 16 * 3, 1000)
VIT_HUGE = plain_shape(32, 1280, 16, 257, 14 * 14 * 3, 1000)
# The video and audio MAE of the paper have a class token; those of transformers have none, or two.
VIDEO_LARGE = plain_shape(24, 1024, 16, 1569, 2 * 16 * 16 * 3, 400)
AUDIO_BASE = plain_shape(12, 768, 12, 513, 16 * 16, 527)

SHAPES = {
    "deit-small": DEIT_SMALL,
    "deit-tiny": DEIT_TINY,
    "vit-base": VIT_BASE,
    "vit-large": VIT_LARGE,
    "vit-huge-patch14": VIT_HUGE,
    "video-mae-large-16x224 (with a class token)": VIDEO_LARGE,
    "audio-mae-base-1024x128": AUDIO_BASE,
}


def decimals(printed: str) -> int:
    return len(printed.partition(".")[2])


def published_cases() -> list:
    # Numbers stay as they are printed: 2.30 has two decimals.
    models = json.loads(PUBLISHED.read_text(), parse_float=str, parse_int=str)["models"]
    return [
        pytest.param(model, r, printed, id=f"{model.split(' ')[0]}-r{r}")
        for model, entry in models.items()
        for r, printed in entry["gflops"].items()
    ]


@pytest.mark.parametrize(("model", "r", "printed"), published_cases())
def test_published_figure(model, r, printed):
    r = json.loads(r)
    config = MergeConfig(r=tuple(r) if isinstance(r, list) else r)
    assert f"{gflops(SHAPES[model], config):.{decimals(printed)}f}" == printed


def test_all_published_figures_are_read():
    assert len(published_cases()) == 42


def test_hand_count():
    shape = EncoderShape(2, 8, 2, 16, num_tokens=5, num_prefix_tokens=1, patch_flops=1000, head_flops=100)
    count = count_flops(shape, [(5, 4), (4, 4)], similarity_dim=4)
    first, second = count.blocks
    assert first.attention == 4 * 5 * 64 + 2 * 25 * 8
    assert first.mlp == 2 * 4 * 8 * 16
    assert first.norms == 5 * (5 + 4) * 8
    assert first.similarity == 3 * 2 * 4
    assert second.similarity == 0
    assert count.head == 100 + 5 * 4 * 8
    assert count.total == 1000 + (1280 + 400 + 1024 + 360 + 24) + (1024 + 256 + 1024 + 320) + 260
    assert count.gflops == count.total / 1e9


def test_gated_mlp_and_attention_pool_are_counted():
    shape = EncoderShape(1, 8, 2, 16, 5, 0, 0, 0, gated_mlp=True, head_token_flops=7)
    count = count_flops(shape, [(5, 3)], None)
    assert count.blocks[0].mlp == 3 * 3 * 8 * 16
    assert count.head == 3 * (7 + 5 * 8)
    assert count_flops(shape, [(5, 3)], None, head_tokens=5).head == 5 * (7 + 5 * 8)


def test_mame_compares_patches_at_full_width_even_when_nothing_merges():
    config = MergeConfig(method="mame", threshold=0.9, layers=[0])
    count = merged_flops(DEIT_TINY, [(197, 197)] * 12, config)
    assert [block.similarity for block in count.blocks[:2]] == [98 * 98 * 192, 0]


@pytest.mark.parametrize(
    ("config", "compared"),
    [
        (MergeConfig(r=8), 99 * 98 * 64),
        (MergeConfig(r=8, metric="x"), 99 * 98 * 192),
        (MergeConfig(r=8, head_aggregation="concat"), 99 * 98 * 192),
        (MergeConfig(method="random_prune", r=8), 0),
        (MergeConfig(method="attention_prune", r=8), 0),
        (MergeConfig(method="kmeans", r=8, kmeans_iterations=3), 3 * 196 * 188 * 64),
        (MergeConfig(method="greedy", r=8), 196 * 196 * 64),
    ],
)
def test_what_each_method_compares(config, compared):
    tokens = planned_tokens(DEIT_TINY, config)
    assert merged_flops(DEIT_TINY, tokens, config).blocks[0].similarity == compared


def test_restored_tokens_reach_the_head():
    shape = EncoderShape(1, 8, 2, 16, 9, 0, 0, 0, head_token_flops=7)
    config = MergeConfig(r=4)
    restored = MergeConfig(r=4, restore=True)
    assert gflops(shape, restored) - gflops(shape, config) == pytest.approx(4 * (7 + 40) / 1e9)


def test_token_counts_are_cut_as_in_the_paper():
    assert token_counts(10, 1, [3, 0, 9, 9, 9]) == [(10, 7), (7, 7), (7, 4), (4, 3), (3, 2)]
    assert token_counts(2, 2, [5]) == [(2, 2)]


def test_mame_with_a_fixed_number():
    config = MergeConfig(method="mame", keep_ratio=0.5, layers=[0, 2])
    assert planned_tokens(plain_shape(4, 8, 2, 18, 1, 1), config) == [(18, 10), (10, 10), (10, 6), (6, 6)]
    assert kept_tokens(9, 0.5) == 5
    assert kept_tokens(10, 0.75) == 8


def test_mame_with_a_threshold_needs_images():
    with pytest.raises(ValueError, match="depends on the images"):
        gflops(DEIT_TINY, MergeConfig(method="mame"))
    assert gflops(DEIT_TINY, MergeConfig(method="mame", layers=[])) == gflops(DEIT_TINY)


def test_wrong_number_of_blocks():
    with pytest.raises(ValueError, match="`tokens` has 2 entries, but the encoder has 12 blocks"):
        count_flops(DEIT_TINY, [(5, 4), (4, 3)], 64)


def test_fractions_of_tokens():
    half = count_flops(DEIT_TINY, [(100.5, 100.5)] * 12, None).total
    low, high = (count_flops(DEIT_TINY, [(n, n)] * 12, None).total for n in (100, 101))
    assert low < half < high


# --- shapes read from configs --------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
WIDE = {**SMALL, "intermediate_size": 48}
VIDEO = {**WIDE, "num_frames": 4, "tubelet_size": 2}
IMAGE = (1, 3, 32, 32)

FAMILIES = {
    "vit": (transformers.ViTForImageClassification, WIDE, IMAGE),
    "deit": (transformers.DeiTForImageClassification, WIDE, IMAGE),
    "vit_msn": (transformers.ViTMSNForImageClassification, WIDE, IMAGE),
    "vit_mae": (transformers.ViTMAEModel, WIDE, IMAGE),
    "beit": (transformers.BeitForImageClassification, WIDE, IMAGE),
    "data2vec-vision": (transformers.Data2VecVisionForImageClassification, WIDE, IMAGE),
    "dinov2": (transformers.Dinov2ForImageClassification, {**SMALL, "use_swiglu_ffn": True}, IMAGE),
    "dinov2_with_registers": (transformers.Dinov2WithRegistersForImageClassification, {**SMALL}, IMAGE),
    "dinov3_vit": (transformers.DINOv3ViTModel, {**WIDE, "use_gated_mlp": True, "num_register_tokens": 2}, IMAGE),
    "tipsv2_vision_model": (transformers.Tipsv2VisionModel, {**SMALL, "num_register_tokens": 2}, IMAGE),
    "pixio": (transformers.PixioModel, {**SMALL, "n_cls_tokens": 3}, IMAGE),
    "ijepa": (transformers.IJepaForImageClassification, WIDE, IMAGE),
    "videomae": (transformers.VideoMAEForVideoClassification, VIDEO, (1, 4, 3, 32, 32)),
    "vivit": (transformers.VivitForVideoClassification, {**VIDEO, "tubelet_size": [2, 8, 8]}, (1, 4, 3, 32, 32)),
    "clip_vision_model": (transformers.CLIPVisionModelWithProjection, {**WIDE, "projection_dim": 24}, IMAGE),
    "metaclip_2_vision_model": (
        transformers.MetaClip2VisionModelWithProjection,
        {**WIDE, "projection_dim": 24},
        IMAGE,
    ),
    "altclip_vision_model": (transformers.AltCLIPVisionModel, {**WIDE, "projection_dim": 24}, IMAGE),
    "chinese_clip_vision_model": (transformers.ChineseCLIPVisionModel, {**WIDE, "projection_dim": 24}, IMAGE),
    "clipseg_vision_model": (transformers.CLIPSegVisionModel, WIDE, IMAGE),
    "kosmos_2_vision_model": (kosmos_2.Kosmos2VisionModel, WIDE, IMAGE),
    "janus_vision_model": (transformers.JanusVisionModel, WIDE, IMAGE),
    "aimv2_vision_model": (transformers.Aimv2VisionModel, WIDE, IMAGE),
    "internvl_vision": (transformers.InternVLVisionModel, WIDE, IMAGE),
    "idefics3_vision": (transformers.Idefics3VisionTransformer, WIDE, IMAGE),
    "smolvlm_vision": (transformers.SmolVLMVisionTransformer, WIDE, IMAGE),
    "siglip_vision_model": (transformers.SiglipVisionModel, WIDE, IMAGE),
    "siglip2_vision_model": (transformers.Siglip2VisionModel, {**WIDE, "num_patches": 16}, None),
    "audio-spectrogram-transformer": (
        transformers.ASTForAudioClassification,
        {**WIDE, "max_length": 40, "num_mel_bins": 28, "frequency_stride": 5, "time_stride": 5},
        (1, 40, 28),
    ),
}


def build(family: str) -> tuple:
    model_class, sizes, input_shape = FAMILIES[family]
    config = model_class.config_class(**sizes)
    model = model_class(config).eval()
    if family == "siglip2_vision_model":
        return model, {
            "pixel_values": torch.randn(1, 16, 8 * 8 * 3),
            "pixel_attention_mask": torch.ones(1, 16, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[4, 4]]),
        }
    # Towers of language models say "input_ids", though they take images alone.
    name = "pixel_values" if model.main_input_name == "input_ids" else model.main_input_name
    return model, {name: torch.randn(input_shape)}


def products(count: FlopCount, shape: EncoderShape) -> float:
    norms = sum(block.norms for block in count.blocks) + 5 * shape.num_tokens * shape.hidden_size
    return count.total - norms


def resized_positions(counter: FlopCounterMode) -> int:
    """Return what a NaFlex embedding spends beside its patches: 5.24 resizes positions by a product, 5.23 does not."""
    counts = {name: sum(of_module.values()) for name, of_module in counter.get_flop_counts().items()}
    patches = {name for name in counts if name.endswith(".embeddings.patch_embedding")}
    return sum(counts[name.removesuffix(".patch_embedding")] - counts[name] for name in patches)


def test_every_row_has_a_model_here():
    assert set(FAMILIES) == {row.model_types[0] for row in ROWS}


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_counts_the_same_products(family):
    torch.manual_seed(0)
    model, inputs = build(family)
    # The counter does not know the fused kernel of a CPU, so attention is made of plain products here.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    shape = encoder_shape(model.config)
    if family in ("altclip_vision_model", "chinese_clip_vision_model"):  # the projection is in the model around these
        shape = replace(shape, head_flops=0)
    count = count_flops(shape, [(shape.num_tokens, shape.num_tokens)] * shape.num_layers, None)
    resized = resized_positions(counter)
    assert resized in ((0, 2 * 16 * 16 * 32) if family == "siglip2_vision_model" else (0,))
    assert products(count, shape) == (counter.get_total_flops() - resized) / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_protects_what_apply_protects(family):
    model, inputs = build(family)
    config = MergeConfig(r=3, exact_last_block=False)  # a config does not tell what its head reads
    model = apply(model.eval(), config)
    with torch.no_grad():
        model(**inputs)
    (tower,) = report(model).towers
    assert encoder_shape(model.config).num_prefix_tokens == tower.num_prefix_tokens
    assert gflops(model.config, config) == pytest.approx(tower.gflops, rel=1e-12)


def test_deit_with_teacher_has_two_heads():
    config = transformers.DeiTConfig(num_labels=10)
    student = encoder_shape(config).head_flops
    config.architectures = ["DeiTForImageClassificationWithTeacher"]
    assert encoder_shape(config).head_flops == 2 * student


def test_a_whole_clip_is_its_vision_tower():
    config = transformers.CLIPConfig()
    assert encoder_shape(config) == encoder_shape(config.vision_config)
    assert 4.3 < gflops(config) < 4.5  # ViT-B/32 at 224: 4.4 GFLOPs of multiply-adds


def test_vit_config_gives_the_published_deit_tiny():
    config = transformers.ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=1000)
    assert encoder_shape(config) == DEIT_TINY


def test_unknown_model_type():
    with pytest.raises(ValueError, match=r"model type 'resnet'; known are vit, deit"):
        gflops(transformers.ResNetConfig())

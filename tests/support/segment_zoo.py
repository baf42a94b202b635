"""Small random packed towers, and towers of SAM's kind: one for every row of `adapters.dense.packed` and `.sam`."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

GRIDS = [[1, 8, 8], [1, 6, 10], [1, 4, 4]]
"""Steps, rows and columns of three images of unequal sizes."""
WIDTH = {"hidden_size": 32, "intermediate_size": 48, "patch_size": 4}
BLOCKS = {**WIDTH, "depth": 4, "num_heads": 2, "out_hidden_size": 32}
LAYERS = {**WIDTH, "num_hidden_layers": 4, "num_attention_heads": 2}


@dataclass(frozen=True)
class PackedZoo:
    """A packed tower: where transformers defines it, how to build it, and what its patches look like."""

    module: str
    tower: str
    config: str
    options: dict[str, Any]
    patch: tuple[int, ...] = (96,)  # the shape of one: 3 channels of 2 frames of 4 x 4 pixels
    patches: int = 1  # in a row of the input
    grid: str = "grid_thw"
    more: dict[str, Any] = field(default_factory=dict)
    mergers: tuple[str, ...] = ("pooler_output", "last_hidden_state")

    def make(self, backend: str = "sdpa", seed: int = 0) -> nn.Module:
        folder = f"transformers.models.{self.module}"
        config = getattr(importlib.import_module(f"{folder}.configuration_{self.module}"), self.config)
        tower = getattr(importlib.import_module(f"{folder}.modeling_{self.module}"), self.tower)
        torch.manual_seed(seed)
        model = tower._from_config(config(**self.options), attn_implementation=backend).eval()
        # Freshly built models are nearly linear; larger weights make a wrong merge show.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2 and parameter.std() < 0.1:
                    parameter.normal_(std=0.8 * parameter[0].numel() ** -0.5)
                elif "bias" in name or "lambda" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    def inputs(self, grids: list[list[int]] = GRIDS, seed: int = 1) -> list[tuple[Tensor, list[int]]]:
        """Return the patches of each image, with its grid."""
        images = []
        for index, (steps, rows, columns) in enumerate(grids):
            generator = torch.Generator().manual_seed(seed + index)
            patches = torch.randn(steps * rows * columns // self.patches, *self.patch, generator=generator)
            images.append((patches, [steps, rows, columns]))
        return images

    def run(self, model: nn.Module, images: list[tuple[Tensor, list[int]]] | None = None) -> Tensor:
        """Run a tower on a batch of images; what stands behind its blocks comes out."""
        images = self.inputs() if images is None else images
        patches, grids = torch.cat([rows for rows, _ in images]), torch.tensor([grid for _, grid in images])
        more = {name: torch.full((len(images),), value) for name, value in self.more.items()}
        if self.patches > 1:
            grids = grids // torch.tensor([1, 2, 2])
        out = model(patches[None] if self.module == "paddleocr_vl" else patches, **{self.grid: grids}, **more)
        rows = next(out[name] for name in self.mergers if out.get(name) is not None)
        if isinstance(rows, (list, tuple)):
            rows = torch.cat(list(rows))
        rows = [rows.flatten(0, -2), *(layer.flatten(0, -2) for layer in out.get("deepstack_features") or ())]
        return torch.cat([part[: len(rows[0])] for part in rows], dim=-1)


STACK = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2]}
POSITIONS = {"num_position_embeddings": 64}
WINDOWS = {"window_size": 16, "fullatt_block_indexes": [1, 3]}
IMAGE = {"image_size": 32}
MUSE = {**LAYERS, "pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16}
ONE_FRAME, PIXELS = (48,), (3, 4, 4)

ALL_PACKED: tuple[PackedZoo, ...] = (
    PackedZoo(
        "qwen2_vl",
        "Qwen2VisionTransformerPretrainedModel",
        "Qwen2VLVisionConfig",
        {**BLOCKS, "embed_dim": 32, "mlp_ratio": 2},
    ),
    PackedZoo(
        "qwen2_5_vl",
        "Qwen2_5_VisionTransformerPretrainedModel",
        "Qwen2_5_VLVisionConfig",
        {**BLOCKS, **WINDOWS},
    ),
    PackedZoo("qwen2_5_omni", "Qwen2_5OmniVisionEncoder", "Qwen2_5OmniVisionEncoderConfig", {**BLOCKS, **WINDOWS}),
    PackedZoo("qwen3_vl", "Qwen3VLVisionModel", "Qwen3VLVisionConfig", {**BLOCKS, **STACK}),
    PackedZoo("qwen3_vl_moe", "Qwen3VLMoeVisionModel", "Qwen3VLMoeVisionConfig", {**BLOCKS, **STACK}),
    PackedZoo("qwen3_omni_moe", "Qwen3OmniMoeVisionEncoder", "Qwen3OmniMoeVisionEncoderConfig", {**BLOCKS, **STACK}),
    PackedZoo("cohere_compass", "CohereCompassVisionModel", "CohereCompassVisionConfig", {**BLOCKS, **STACK}),
    PackedZoo("qwen3_5", "Qwen3_5VisionModel", "Qwen3_5VisionConfig", {**BLOCKS, **POSITIONS}),
    PackedZoo("qwen3_5_moe", "Qwen3_5MoeVisionModel", "Qwen3_5MoeVisionConfig", {**BLOCKS, **POSITIONS}),
    PackedZoo("qwen4_exp", "Qwen4ExpVisionModel", "Qwen4ExpVisionConfig", {**BLOCKS, **POSITIONS}),
    PackedZoo("glm4v", "Glm4vVisionModel", "Glm4vVisionConfig", {**BLOCKS, **IMAGE}),
    PackedZoo("glm4v_moe", "Glm4vMoeVisionModel", "Glm4vMoeVisionConfig", {**BLOCKS, **IMAGE}),
    PackedZoo("glm_ocr", "GlmOcrVisionModel", "GlmOcrVisionConfig", {**BLOCKS, **IMAGE}),
    PackedZoo("glm5_next", "Glm5NextVisionModel", "Glm5NextVisionConfig", {**BLOCKS, **IMAGE}),
    PackedZoo("glm_image", "GlmImageVisionModel", "GlmImageVisionConfig", {**BLOCKS, **IMAGE}, ONE_FRAME),
    PackedZoo(
        "dots3_note",
        "Dots3NoteVisionModel",
        "Dots3NoteVisionConfig",
        {
            **LAYERS,
            "adapter_in_dim": 32,
            "adapter_out_dim": 32,
            "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
            "num_local_experts": 4,
            "moe_intermediate_size": 24,
        },
        ONE_FRAME,
    ),
    PackedZoo(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeVisionTransformerPretrainedModel",
        "Ernie4_5_VLMoeVisionConfig",
        BLOCKS,
        ONE_FRAME,
    ),
    PackedZoo(
        "exaone4_5",
        "Exaone4_5_VisionModel",
        "Exaone4_5_VisionConfig",
        {**BLOCKS, **WINDOWS, "num_key_value_heads": 1},
    ),
    PackedZoo("kimi_k25", "Kimi_K25VisionModel", "Kimi_K25VisionConfig", LAYERS, PIXELS),
    PackedZoo("muse_glimmer", "MuseGlimmerVisionModel", "MuseGlimmerVisionConfig", MUSE),
    PackedZoo("muse_spark", "MuseSparkVisionModel", "MuseSparkVisionConfig", MUSE),
    PackedZoo("hunyuan_vl", "HunYuanVLVisionTransformer", "HunYuanVLVisionConfig", LAYERS, ONE_FRAME),
    PackedZoo("hy_v4_vl", "HYV4VLVisionModel", "HYV4VLVisionConfig", LAYERS, ONE_FRAME),
    PackedZoo(
        "minimax_m3_vl", "MiniMaxM3VLVisionModel", "MiniMaxM3VLVisionConfig", LAYERS, mergers=("last_hidden_state",)
    ),
    PackedZoo("paddleocr_vl", "PaddleOCRVisionTransformer", "PaddleOCRVisionConfig", {**LAYERS, **IMAGE}, PIXELS),
    PackedZoo(
        "video_llama_3",
        "VideoLlama3VisionModel",
        "VideoLlama3VisionConfig",
        LAYERS,
        PIXELS,
        more={"merge_sizes": 2},
    ),
    PackedZoo(
        "cosmos3_edge", "Cosmos3EdgeVisionModel", "Cosmos3EdgeVisionConfig", {**LAYERS, "num_patches": 64}, ONE_FRAME
    ),
    PackedZoo("inkling2", "Inkling2VisionModel", "Inkling2VisionConfig", LAYERS, (8, 8, 3), 4, "image_grid_thw"),
)

PACKED_ZOO = tuple(zoo for zoo in ALL_PACKED if importlib.util.find_spec(f"transformers.models.{zoo.module}"))
"""Those that the installed transformers has."""

# --- towers of SAM's kind -------------------------------------------------------------------------------------------

GRID = {"image_size": 40, "patch_size": 4, "window_size": 4}
"""10 x 10 patches in windows of 4 x 4, the last of which reach over the edges."""
SAM = {
    **GRID,
    **{"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_dim": 48, "output_channels": 16},
    "global_attn_indexes": [1, 3],
}
SAM3 = {
    **GRID,
    **{"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48},
    **{"global_attn_indexes": [1, 3], "pretrain_image_size": 40},
}


VITDET = {
    **GRID,
    **{"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2, "drop_path_rate": 0.1},
    **{"window_block_indices": [0, 2], "use_relative_position_embeddings": True, "pretrain_image_size": 40},
}


def with_weights(model: nn.Module) -> nn.Module:
    """Give a model weights, in place; SAM's begin near zero, and its position tables at zero, which hides faults."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name or "pos_embed" in name or "position_embeddings" in name:
                parameter.normal_(std=0.5)
            elif parameter.ndim >= 2:
                parameter.normal_(std=0.8 * parameter[0].numel() ** -0.5)
            elif "bias" in name:
                parameter.normal_(std=0.5)
    return model


@dataclass(frozen=True)
class WindowZoo:
    """A tower with windows: where transformers defines it, and how to build it."""

    module: str
    tower: str
    config: str
    options: dict[str, Any] = field(default_factory=lambda: SAM)
    backends: tuple[str, ...] = ("eager", "sdpa")

    def make(self, backend: str = "", seed: int = 0, **options: Any) -> nn.Module:
        folder = f"transformers.models.{self.module}"
        config = getattr(importlib.import_module(f"{folder}.configuration_{self.module}"), self.config)
        tower = getattr(importlib.import_module(f"{folder}.modeling_{self.module}"), self.tower)
        torch.manual_seed(seed)
        built = config(**{**self.options, **options})
        model = tower._from_config(built, attn_implementation=backend or self.backends[-1]).eval()
        return with_weights(model)

    def inputs(self, batch_size: int = 2, size: tuple[int, int] = (40, 40)) -> Tensor:
        return torch.randn(batch_size, 3, *size, generator=torch.Generator().manual_seed(1))

    def run(self, model: nn.Module, pixels: Tensor | None = None) -> Tensor:
        """Run a tower; its output, and what its global blocks gave out, in one tensor (B, values)."""
        out = model(self.inputs() if pixels is None else pixels)
        maps = [*(out.get("intermediate_embeddings") or ()), *(out.get("feature_maps") or ())]
        parts = [*maps, *([out.last_hidden_state] if "last_hidden_state" in out else [])]
        return torch.cat([part.flatten(1) for part in parts], dim=1)


WINDOW_ZOO: tuple[WindowZoo, ...] = (
    WindowZoo("sam", "SamVisionEncoder", "SamVisionConfig"),
    WindowZoo("sam_hq", "SamHQVisionEncoder", "SamHQVisionConfig"),
    WindowZoo("got_ocr2", "GotOcr2VisionEncoder", "GotOcr2VisionConfig", backends=("eager",)),
    WindowZoo("deepseek_ocr2", "DeepseekOcr2SamVisionEncoder", "DeepseekOcr2SamVisionConfig"),
    WindowZoo("unlimited_ocr", "UnlimitedOcrSamVisionEncoder", "UnlimitedOcrSamVisionConfig"),
    WindowZoo(
        "pp_formulanet",
        "PPFormulaNetVisionModel",
        "PPFormulaNetVisionConfig",
        {**SAM, "output_channels": 256},
        ("eager",),
    ),
    WindowZoo("slanext", "SLANeXtVisionEncoder", "SLANeXtVisionConfig", backends=("eager",)),
    WindowZoo("sam3", "Sam3ViTModel", "Sam3ViTConfig", SAM3),
    WindowZoo("vitdet", "VitDetModel", "VitDetConfig", VITDET, ("eager",)),
    WindowZoo("vitdet", "VitDetBackbone", "VitDetConfig", {**VITDET, "out_indices": [1, 2, 4]}, ("eager",)),
)

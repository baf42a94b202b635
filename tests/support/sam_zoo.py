"""Small random towers of SAM's kind: one for every row of `hf_tome.adapters.dense.sam`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

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

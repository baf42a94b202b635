"""The models: a ViT of 256 patches, and Swin beside MaMe-Swin at as many multiply-adds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import SwinConfig, SwinForImageClassification, ViTConfig, ViTForImageClassification

from hf_tome.models import MameSwinConfig, MameSwinForImageClassification

IMAGE = {"image_size": 32, "patch_size": 2, "num_labels": 10}
# transformers' 0.02 is meant for widths of several hundred; this is about 1 / sqrt(width) / 2.
NARROW = {"initializer_range": 0.06}
SWIN = {"depths": (2, 2, 2), "window_size": 4, "mlp_ratio": 2.0, "drop_path_rate": 0.0}

POSITION_SCALE = 0.15
"""Sines of this height are about as long as the embedded patches."""

CONFIGS = {
    "vit": ViTConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, **IMAGE, **NARROW
    ),
    "swin": SwinConfig(embed_dim=24, num_heads=(2, 4, 8), **SWIN, **IMAGE, **NARROW),
    "mame_swin": MameSwinConfig(embed_dim=36, num_heads=(3, 3, 3), **SWIN, **IMAGE, **NARROW),
}
CLASSES = {
    "vit": ViTForImageClassification,
    "swin": SwinForImageClassification,
    "mame_swin": MameSwinForImageClassification,
}


def build(name: str, seed: int) -> nn.Module:
    """Return a model with random weights; a ViT's position embeddings begin as sines, which it learns faster from."""
    torch.manual_seed(seed)
    model = CLASSES[name](CONFIGS[name])
    if name == "vit":
        embeddings = model.vit.embeddings.position_embeddings
        with torch.no_grad():
            side = IMAGE["image_size"] // IMAGE["patch_size"]
            embeddings[0, 1:] = POSITION_SCALE * sine_positions(side, embeddings.shape[-1])
    return model.train()


def sine_positions(side: int, channels: int) -> Tensor:
    """Return sines and cosines of the rows and columns of a square grid, (side * side, channels)."""
    frequencies = 100 ** -(torch.arange(channels // 4) / (channels // 4))
    angles = torch.arange(side)[:, None] * frequencies  # (side, channels / 4)
    one_axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, channels / 2)
    rows = one_axis[:, None].expand(-1, side, -1)
    columns = one_axis[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def train_last_block_alone(model: ViTForImageClassification) -> None:
    """Freeze all but the last block, the norm after it and the head."""
    model.requires_grad_(False)
    for module in (model.vit.layers[-1], model.vit.layernorm, model.classifier):
        module.requires_grad_(True)


def class_token_and_logits(model: ViTForImageClassification, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class token's features (B, C) and the logits (B, 10)."""
    features = model.vit(pixel_values=images).last_hidden_state[:, 0]
    return features, model.classifier(features)

"""Multiply-adds of Swin, and of Swin with MaMe between its stages, from a config alone."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.models.swin.configuration_swin import SwinConfig

from .mame_swin import MameSwinConfig

NORM_FLOPS = 5
"""Multiply-adds of LayerNorm per element, as in the rest of this package."""


def swin_gflops(config: SwinConfig) -> float:
    """Return the GFLOPs (multiply-adds) of an image of `config.image_size`.

    Counted are products of matrices, convolutions and LayerNorm; of MaMe the similarities and the fusion, without
    which the paper's table 2 would have 1.3 where it has 1.5. Sides that windows do not divide are padded.
    """
    merges = isinstance(config, MameSwinConfig)
    height, width = (image // patch for image, patch in zip(_pair(config.image_size), _pair(config.patch_size)))
    patch_area = _pair(config.patch_size)[0] * _pair(config.patch_size)[1]
    total: float = height * width * config.embed_dim * (patch_area * config.num_channels + NORM_FLOPS)
    dim, last = config.embed_dim, len(config.depths) - 1
    for stage, depth in enumerate(config.depths):
        total += depth * _block_flops(height, width, dim, config)
        if stage < last:
            tokens, height, width = height * width, -(-height // 2), -(-width // 2)
            kept = height * width
            if merges:
                total += 2 * kept * (tokens - kept) * dim  # similarities, fusion
            else:
                total += kept * (4 * dim * 2 * dim + NORM_FLOPS * 4 * dim)
                dim *= 2
    total += height * width * NORM_FLOPS * dim + dim * (config.num_labels or 0)
    return total / 1e9


def _block_flops(height: int, width: int, dim: int, config: SwinConfig) -> float:
    window = min(config.window_size, height, width)
    padded = -(-height // window) * -(-width // window) * window**2
    tokens = height * width
    attention = padded * (4 * dim**2 + 2 * window**2 * dim)
    return attention + tokens * (2 * dim * int(config.mlp_ratio * dim) + 2 * NORM_FLOPS * dim)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])

"""Multiply-adds of a denoiser with and without merging, counted on tensors without data.

The shapes of the last pass are kept, and `report` runs the denoiser and each block that merged on the meta device,
where PyTorch counts products of matrices, attention and convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...config import MergeConfig
from ...merging.methods import get_method
from ...patching.patch import own_class
from .matching import match_grid
from .state import BlockDetail, BlockShapes, DenoiserDetail


def count_denoiser(denoiser: nn.Module, detail: DenoiserDetail, config: MergeConfig) -> tuple[float, float]:
    """Return GFLOPs (multiply-adds) an image of the last pass, with merging and without.

    Raises:
        RuntimeError: the denoiser cannot be counted, because of what is set on it or what its forward reads.
    """
    if detail.inputs is None:
        raise RuntimeError("there was no pass in which blocks ran one by one")
    if any(hasattr(module, "_diffusers_hook") for module in denoiser.modules()):
        raise RuntimeError("hooks of diffusers are set on it, which must not see a pass that is none")
    twin = _without_data(denoiser, detail)
    unmerged = _count(twin, detail.inputs)
    saved = sum(_saved(block, twin.get_submodule(block.path), config) for block in detail.details)
    num_images = len(next(iter(detail.inputs.values())))
    return (unmerged - saved) / num_images / 1e9, unmerged / num_images / 1e9


def _without_data(denoiser: nn.Module, detail: DenoiserDetail) -> nn.Module:
    """Return a copy whose weights have no data; what its forward keeps for later, such as tables, is in the copy."""
    tensors = [*denoiser.parameters(), *denoiser.buffers()]
    memo: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    grid, detail.state.grid = detail.state.grid, None  # outside of a pass, patched blocks run as they are
    try:
        return copy.deepcopy(denoiser, memo)
    finally:
        detail.state.grid = grid


def _saved(block: BlockDetail, part: nn.Module, config: MergeConfig) -> float:
    """Return the multiply-adds that merging saves in one block, the matching taken off."""
    if block.shapes is None or block.tokens is None:
        return 0
    shapes = block.shapes
    before, after = _count(part, shapes.inputs), _count(part, shapes.merged)
    return shapes.num_runs * (before - after - _count_matching(shapes, config))


def _count_matching(shapes: BlockShapes, config: MergeConfig) -> float:
    tokens = torch.empty(shapes.grid_tokens, device="meta")
    if get_method(config.method).takes_r is False and config.keep_ratio is None:
        # A threshold decides by values; the products are those of as many tokens kept.
        config = replace(config, threshold=MergeConfig().threshold, keep_ratio=shapes.num_left / shapes.grid_tokens[1])
    with FlopCounterMode(display=False) as counter:
        match = match_grid(config, tokens, shapes.grid, torch.zeros((), dtype=torch.int64))
        merged, _ = match.merge(tokens)
        match.unmerge(merged)
    return counter.get_total_flops() / 2


def _count(module: nn.Module, arguments: Mapping[str, Any]) -> float:
    """Return the multiply-adds of a module's own forward, not of what it was patched with."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        own_class(module).forward(module, **arguments)
    return counter.get_total_flops() / 2

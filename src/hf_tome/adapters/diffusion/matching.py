"""From a config, a grid and a seed to the merge of one block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...config import MergeConfig
from ...merging import Merge
from ...merging.method import GridInputs
from ...merging.methods import get_method

MIX = 0x9E3779B1


def step_seed(timestep: Any, seed: int, device: torch.device) -> Tensor:
    """Return a seed, an int64 scalar below 2^31, that depends on the timestep and the config's seed alone.

    A tensor, not a number: reading a timestep would make a GPU wait, and a compiled block would be compiled anew for
    every value. Both passes of a guidance pair have the same timestep, so they draw the same destinations.
    """
    value = timestep if isinstance(timestep, Tensor) else torch.tensor(float(timestep or 0.0))
    # Timesteps are integers to 1000 or numbers from 0 to 1.
    step = (value.detach().reshape(-1)[0].double() * 4096).round().long().to(device)
    return ((step + 1) * MIX + (seed + 1) * 0x85EBCA6B) % (1 << 31)


def block_seed(step: Tensor, index: Tensor) -> Tensor:
    """Return the seed of block `index` (an int64 scalar) in the step of `step_seed`."""
    return (step + index * 0xC2B2AE35) % (1 << 31)


def match_grid(config: MergeConfig, tokens: Tensor, shape: tuple[int, ...], seed: Tensor) -> Merge:
    """Match the tokens (B, N, C) of a grid by the config's method."""
    method = get_method(config.method)
    assert method.match_grid is not None  # the adapter has checked that
    inputs = GridInputs(
        metric=tokens.detach(),
        r=config.requested_tokens(0, tokens.shape[1]),  # the method cuts that to what the cells allow
        shape=shape,
        tile=config.tile,
        stride=config.stride,
        seed=seed,
        fields=config.match_fields(method),
    )
    return method.match_grid(inputs)

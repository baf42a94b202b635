"""How tokens are split into those that may go (sources) and those that may take in (destinations)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import pseudo_random

PARTITIONS = ("alternating", "sequential", "random")


def split(
    num_tokens: int, num_special: int, partition: str, device: torch.device, *, first: int = 0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Split the unprotected tokens into sources and destinations.

    Args:
        num_tokens (`int`): N, special tokens included.
        num_special (`int`): leading tokens that are in neither set.
        partition (`str`): `"alternating"`, `"sequential"` or `"random"` (ToMe, table 1e; MaMe, figure 2c).
        device (`torch.device`): where the index tensors are made.
        first (`int`): alternating sources are the positions `first`, `first + 2`, ... of the whole sequence; ToMe counts
            from 0 with the special tokens, MaMe from the first token after them.
        seed (`int`): for `"random"`.

    Returns:
        `tuple[Tensor, Tensor]`: positions of the sources (S,) and destinations (T,), int64, each ascending, with
        |S - T| at most 1 but for the special tokens.
    """
    positions = torch.arange(num_special, num_tokens, device=device)
    if partition == "alternating":
        parity = (first - num_special) % 2
        return positions[parity::2], positions[1 - parity :: 2]
    half = (num_tokens - num_special + 1) // 2
    if partition == "sequential":
        return positions[:half], positions[half:]
    if partition == "random":
        order = torch.argsort(pseudo_random(num_tokens - num_special, seed, device), stable=True)
        return positions[order[:half].sort().values], positions[order[half:].sort().values]
    raise ValueError(f"`partition` is {partition!r}; it takes one of {', '.join(map(repr, PARTITIONS))}.")

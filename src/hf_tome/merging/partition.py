"""How tokens are split into those that may go (sources) and those that may take in (destinations)."""

from __future__ import annotations

import torch
from torch import Tensor

PARTITIONS = ("alternating", "sequential", "random")


def split(
    num_tokens: int,
    num_special: int,
    partition: str,
    device: torch.device,
    *,
    first: int = 0,
    seed: int = 0,
    padding: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Split the unprotected tokens into sources and destinations.

    Args:
        num_tokens (`int`): N, special tokens included.
        num_special (`int`): leading tokens that are in neither set.
        partition (`str`): `"alternating"`, `"sequential"` or `"random"` (ToMe, table 1e; MaMe, figure 2c).
        device (`torch.device`): where the index tensors are made.
        first (`int`): alternating sources are the positions `first`, `first + 2`, ... of the whole sequence; ToMe
            counts from 0 with the special tokens, MaMe from the first token after them.
        seed (`int`): for `"random"`.
        padding (`Tensor`, *optional*): (B, N) bool, the padding at the end of each image.

    Returns:
        `tuple[Tensor, Tensor]`: int64 positions of the sources and destinations, each ascending, in sets that are
        equal in number or one apart. They are (S,) and (T,), the same in every image. Where images are padded and the
        halves depend on their lengths, they are (B, S) and (B, T): an image's real tokens, split as if it were alone,
        then padding.
    """
    if partition not in PARTITIONS:
        raise ValueError(f"`partition` is {partition!r}; it takes one of {', '.join(map(repr, PARTITIONS))}.")
    positions = torch.arange(num_special, num_tokens, device=device)
    if partition == "alternating":
        parity = (first - num_special) % 2
        return positions[parity::2], positions[1 - parity :: 2]
    order = positions
    if partition == "random":
        order = positions[pseudo_random(positions.shape[0], seed, device).argsort(stable=True)]
    half = (positions.shape[0] + 1) // 2
    if padding is None:
        return order[:half].sort().values, order[half:].sort().values
    return _split_each(order, half, padding)


def alternating(num_tokens: int, num_special: int, first: int = 0) -> tuple[slice, slice]:
    """Return the alternating sets of `split` as slices of all tokens."""
    start = num_special + (first - num_special) % 2
    return slice(start, num_tokens, 2), slice(2 * num_special + 1 - start, num_tokens, 2)


def sources_beside(destinations: Tensor, num_tokens: int) -> Tensor:
    """Return the tokens that are no destinations, (B, T) -> (B, num_tokens - T), ascending."""
    chosen = torch.zeros(destinations.shape[0], num_tokens, dtype=torch.bool, device=destinations.device)
    chosen = chosen.scatter(1, destinations, True)
    return chosen.int().argsort(dim=1, stable=True)[:, : num_tokens - destinations.shape[1]]


def _split_each(order: Tensor, half: int, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Split the tokens `order` (n,) in each image at half of its real ones, and fill both sets up with padding."""
    num_tokens = padding.shape[1]
    ranked = order[padding[:, order].int().argsort(dim=1, stable=True)]  # (B, n), real tokens, then padding
    num_real = (~padding[:, order]).sum(dim=1, keepdim=True)
    num_sources = (num_real + 1) // 2
    place = torch.arange(order.shape[0], device=order.device)
    # 0 and 2 are the real sources and destinations, 1 and 3 the padding that fills them up.
    group = torch.where(place < num_real + half - num_sources, 1, 3)
    group = torch.where(place < num_real, 2, group)
    group = torch.where(place < num_sources, 0, group)
    grouped = (group * num_tokens + ranked).sort(dim=1).values % num_tokens
    return grouped[:, :half], grouped[:, half:]


def pseudo_random(n: int, seed: int | Tensor, device: torch.device) -> Tensor:
    """Return `n` distinct int64 numbers below 2^32 that depend on `seed` alone, the same on every device.

    Integer mixing (two rounds of a multiplicative hash) instead of a generator: generators differ between devices and
    break compiled graphs.
    """
    start = (seed + 1) * 0x9E3779B1 % 4294967291  # a prime below 2^32, so that every bit of a large seed counts
    mixed = (torch.arange(n, device=device, dtype=torch.int64) + start) % (1 << 32)
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        mixed = (mixed ^ (mixed >> 16)) * multiplier % (1 << 32)
    return mixed ^ (mixed >> 16)

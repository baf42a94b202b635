"""The entries of one layer's cache, with what each stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Entries(NamedTuple):
    """Cached keys and values; every KV head has its own.

    Attributes:
        keys, values: (B, H, N, D), keys after RoPE.
        sizes: (B, H, N), what an entry weighs in attention; 0 where it is padding.
        positions: (B, H, N), the position that an entry's key is turned by.
    """

    keys: Tensor
    values: Tensor
    sizes: Tensor
    positions: Tensor

    @property
    def length(self) -> int:
        """N."""
        return self.keys.shape[2]

    def each(self, change: Callable[[Tensor], Tensor]) -> Entries:
        """Return entries in which each tensor is changed."""
        return Entries(*map(change, self))

    def part(self, begin: int, end: int) -> Entries:
        """Return the entries from `begin` to `end`."""
        return self.each(lambda x: x[:, :, begin:end])

    def row(self, index: int) -> Entries:
        """Return the entries of one row of the batch, which stays a batch."""
        return self.each(lambda x: x[index : index + 1])

    def pad_first(self, length: int) -> Entries:
        """Return entries with padding in front, `length` in all."""
        missing = length - self.length
        if missing == 0:
            return self
        return self.each(lambda x: torch.cat([x.new_zeros((*x.shape[:2], missing, *x.shape[3:])), x], dim=2))


def join(parts: Sequence[Entries], dim: int = 2) -> Entries:
    """Return parts one after the other, along the entries or (`dim` 0) the batch."""
    return parts[0] if len(parts) == 1 else Entries(*(torch.cat(tensors, dim=dim) for tensors in zip(*parts)))

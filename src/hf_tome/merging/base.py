"""What every method returns: a `Merge`, that is a merge, its inverse, and where each token went."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

COMBINE_MODES = ("weighted_mean", "mean", "max", "keep_one")


class Merge(ABC):
    """One merging step from N to M tokens, made by a matching function.

    Attributes:
        num_input (`int`): N, the tokens that go in.
        num_output (`int`): M, the tokens that come out.
    """

    num_input: int
    num_output: int

    @abstractmethod
    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Merge tokens `x` (B, N, C) of `size` (B, N, 1), all 1 where `None`, into (B, M, C) and (B, M, 1).

        A size of 0 marks padding: attention, pooling and later merging leave it out.
        """

    @abstractmethod
    def unmerge(self, x: Tensor) -> Tensor:
        """Give every input token its merged token back: (B, M, C) -> (B, N, C)."""

    def detach(self) -> Merge:
        """Return the same merge, through whose weights no gradient runs."""
        return self

    def may_pad(self, was_padded: bool) -> bool:
        """Whether some output may be padding, given whether some input may have been."""
        return was_padded

    @property
    @abstractmethod
    def source(self) -> Tensor:
        """For each input token, the output token that holds it, (B, N) int64; -1 where it was pruned."""

    @property
    @abstractmethod
    def representative(self) -> Tensor:
        """For each output token, the input token whose position it keeps, (B, M) int64."""


class HardMerge(Merge):
    """A merge in which every input token goes to one output token, or is dropped.

    Args:
        kept (`Tensor`): (B, M) int64, the input token that each output token starts from.
        merged (`Tensor`): (B, R) int64, the input tokens that are merged into others.
        into (`Tensor`): (B, R) int64, the output token that each of `merged` goes to.
        num_input (`int`): N.
        combine (`str`): how members combine: `"weighted_mean"` by size, `"mean"`, `"max"` or `"keep_one"`
            (ToMe, table 1d).
    """

    def __init__(self, kept: Tensor, merged: Tensor, into: Tensor, num_input: int, combine: str = "weighted_mean"):
        if combine not in COMBINE_MODES:
            raise ValueError(f"`combine` is {combine!r}; it takes one of {', '.join(map(repr, COMBINE_MODES))}.")
        self.kept, self.merged, self.into, self.combine = kept, merged, into, combine
        self.num_input, self.num_output = num_input, kept.shape[1]

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Merge tokens; only the R merged rows are computed on, the rest is copied (see the base class)."""
        _check_tokens("x", x, self.num_input)
        batch_size, num_input, channels = x.shape
        kept = _flat_rows(self.kept, num_input)
        merged = _flat_rows(self.merged, num_input)
        into = _flat_rows(self.into, self.num_output)

        if size is None:
            size = x.new_ones((batch_size, num_input, 1), dtype=size_dtype(x))
        flat_size = size.reshape(-1)  # (B, N, 1) -> (B*N,)
        merged_size = flat_size.index_select(0, merged)
        out_size = flat_size.index_select(0, kept).index_add(0, into, merged_size)

        flat = x.reshape(-1, channels)  # (B, N, C) -> (B*N, C)
        out = flat.index_select(0, kept)
        if self.merged.shape[1] > 0 and self.combine != "keep_one":
            out = self._combine(out, flat.index_select(0, merged), into, merged_size, out_size)
        return out.view(batch_size, -1, channels), out_size.view(batch_size, -1, 1)

    def _combine(self, out: Tensor, members: Tensor, into: Tensor, merged_size: Tensor, out_size: Tensor) -> Tensor:
        # out (B*M, C); members (B*R, C); into, merged_size (B*R,); out_size (B*M,)
        if self.combine == "max":
            return out.scatter_reduce(0, into[:, None].expand_as(members), members, "amax", include_self=True)
        if self.combine == "mean":
            merged_size = torch.ones_like(merged_size)
            out_size = torch.ones_like(out_size).index_add(0, into, merged_size)
        # A mean over dst and its members, written as dst plus a share of each difference, touches R rows only.
        # Two tokens of padding (size 0) may meet; their share is then 0, not 0/0.
        total = out_size.index_select(0, into)
        share = merged_size / torch.where(total > 0, total, torch.ones_like(total))
        difference = (members - out.index_select(0, into)) * share[:, None].to(out.dtype)
        # `out` is a fresh copy whose value no backward needs, so it can be added to in place.
        return out.index_add_(0, into, difference)

    def unmerge(self, x: Tensor) -> Tensor:
        """Copy each merged token back to its members; a dropped token comes back as zeros (see the base class)."""
        _check_tokens("x", x, self.num_output)
        source = self.source
        restored = x.gather(1, source.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
        if self.kept.shape[1] + self.merged.shape[1] < self.num_input:
            restored = restored.masked_fill((source < 0)[..., None], 0)
        return restored

    @property
    def source(self) -> Tensor:
        """Where each input token went (see the base class)."""
        batch_size = self.kept.shape[0]
        source = self.kept.new_full((batch_size, self.num_input), -1)
        outputs = torch.arange(self.num_output, device=self.kept.device).expand(batch_size, -1)
        return source.scatter(1, self.kept, outputs).scatter(1, self.merged, self.into)

    @property
    def representative(self) -> Tensor:
        """The input token that each output token started from (see the base class)."""
        return self.kept


def identity_merge(batch_size: int, num_tokens: int, device: torch.device) -> HardMerge:
    """Return the merge that changes nothing."""
    kept = torch.arange(num_tokens, device=device).expand(batch_size, -1)
    none = kept.new_empty((batch_size, 0))
    return HardMerge(kept, none, none, num_tokens)


def size_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which the sizes of tokens `x` are kept: counts are never rounded to half precision."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def pseudo_random(n: int, seed: int, device: torch.device) -> Tensor:
    """Return `n` distinct-looking int64 numbers that depend on `seed` alone, the same on every device.

    Integer mixing (two rounds of a multiplicative hash) instead of a generator: generators differ between devices and
    break compiled graphs.
    """
    mixed = torch.arange(n, device=device, dtype=torch.int64) + (seed + 1) * 0x9E3779B1
    for multiplier in (0x85EBCA6B, 0xC2B2AE35):
        mixed = (mixed ^ (mixed >> 16)) * multiplier % (1 << 32)
    return mixed ^ (mixed >> 16)


def check_metric(metric: Tensor, num_special: int) -> None:
    """Raise unless `metric` is a floating (B, N, D) tensor with at least `num_special` tokens."""
    if metric.ndim != 3 or not metric.is_floating_point():
        raise ValueError(
            f"`metric` is a {metric.dtype} tensor of shape {tuple(metric.shape)}; it takes a floating point tensor "
            "(batch_size, num_tokens, dim)."
        )
    if metric.shape[1] < num_special:
        raise ValueError(f"`metric` has {metric.shape[1]} tokens, fewer than the {num_special} special ones.")


def _check_tokens(name: str, x: Tensor, expected: int) -> None:
    if x.ndim != 3 or x.shape[1] != expected:
        raise ValueError(f"`{name}` has shape {tuple(x.shape)}; this merge takes (batch_size, {expected}, channels).")


def _flat_rows(index: Tensor, num_tokens: int) -> Tensor:
    """Turn token numbers (B, K) into row numbers of the flattened batch, (B*K,)."""
    offsets = torch.arange(index.shape[0], device=index.device)[:, None] * num_tokens
    return (index + offsets).reshape(-1)

"""What every method returns: a `Merge`, that is a merge, its inverse, and where each token went."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .indexing import flat_rows, take

COMBINE_MODES = ("weighted_mean", "mean", "max", "keep_one", "keep_norm")
MAX_STRETCH = 2.0
"""How much longer than its mean a merged token may be made: members that nearly cancel out keep a small sum."""


class Merge(ABC):
    """One merging step from N to M tokens, made by a matching function.

    Attributes:
        num_input (`int`): N, the tokens that go in.
        num_output (`int`): M, the tokens that come out.
    """

    num_input: int
    num_output: int
    keeps_norm = False
    """Whether it is a `HardMerge` with `combine="keep_norm"`, which has a `merge_keeping_norm`."""

    @abstractmethod
    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Merge tokens `x` (B, N, C) of `size` (B, N, 1), all 1 where `None`, into (B, M, C) and (B, M, 1).

        A size of 0 marks padding: attention, pooling and later merging leave it out.
        """

    @abstractmethod
    def unmerge(self, x: Tensor) -> Tensor:
        """Give every input token its merged token back, (B, M, C) -> (B, N, C), zeros if pruned or padding."""

    def detach(self) -> Merge:
        """Return the same merge, through whose weights no gradient runs."""
        return self

    def weights_of_grad(self) -> Tensor | None:
        """Return the weights through which gradients reach what was matched, `None` where a merge has none."""
        return None

    def to(self, device: torch.device) -> Merge:
        """Return the same merge of tokens on `device`; a compiled model is on one."""
        if torch.compiler.is_compiling():
            return self
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def may_pad(self, was_padded: bool) -> bool:
        """Whether some output may be padding, given whether some input may have been."""
        return was_padded

    @property
    @abstractmethod
    def source(self) -> Tensor:
        """For each input token, the output token that holds it, (B, N) int64; -1 where it was pruned or is padding."""

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
            (ToMe, table 1d); or `"keep_norm"`, the weighted mean brought to the weighted mean of its members' norms.
        padding (`Tensor`, *optional*): (B, N) bool, the input tokens that count for nothing, in `kept` or in `merged`.
    """

    def __init__(
        self,
        kept: Tensor,
        merged: Tensor,
        into: Tensor,
        num_input: int,
        combine: str = "weighted_mean",
        padding: Tensor | None = None,
    ):
        if combine not in COMBINE_MODES:
            raise ValueError(f"`combine` is {combine!r}; it takes one of {', '.join(map(repr, COMBINE_MODES))}.")
        self.kept, self.merged, self.into, self.combine, self.padding = kept, merged, into, combine, padding
        self.num_input, self.num_output = num_input, kept.shape[1]
        self.keeps_norm = combine == "keep_norm"

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Merge tokens; only the R merged rows are computed on, the rest is copied (see the base class)."""
        if self.keeps_norm:
            return self.merge_keeping_norm(x, size)[:2]
        flat, kept, merged, into, merged_size, out_size = self._flat(x, size)
        out = flat.index_select(0, kept)
        if self.merged.shape[1] > 0 and self.combine != "keep_one":
            members = self._members(flat, out, merged, into, merged_size)
            out = self._combine(out, members, into, merged_size, out_size).to(x.dtype)
        return self._batch(out), self._batch(out_size[:, None])

    def merge_keeping_norm(
        self, x: Tensor, size: Tensor | None = None, coherence: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge tokens as `combine="keep_norm"` has it, and return how coherent the members of each are, too.

        The coherence of a token is the length of its members' weighted mean, as a share of their weighted mean length:
        1 where all point the same way. What it gives to others in attention, its value, is to be multiplied by it, as
        the mean of the members' values is shorter than the value of a token of full length.

        Args:
            x, size: as in `merge`.
            coherence (`Tensor`, *optional*): (B, N), of the tokens that go in, all 1 where `None`.

        Returns:
            Tokens (B, M, C), sizes (B, M, 1), and coherence (B, M), in float32 at least and without a gradient.
        """
        flat, kept, merged, into, merged_size, out_size = self._flat(x, size)
        out = flat.index_select(0, kept)
        share = merged_size / out_size.index_select(0, into).clamp(min=1e-12)
        out, left = _keep_norm(out, self._members(flat, out, merged, into, merged_size), into, share)
        if coherence is not None:
            before = coherence.reshape(-1).to(share.dtype)  # (B, N) -> (B*N,)
            mean = before.index_select(0, kept)
            left = left * mean.index_add(
                0, into, (before.index_select(0, merged) - mean.index_select(0, into)) * share
            )
        return self._batch(out.to(x.dtype)), self._batch(out_size[:, None]), self._batch(left[:, None])[..., 0]

    def _flat(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, ...]:
        """Return all tokens (B*N, C), the rows in them of `kept` (B*M,) and `merged` (B*R,), and sizes by row."""
        check_tokens(x, self.kept.shape[0], self.num_input)
        if not x.is_floating_point() and self.combine != "keep_one":
            raise ValueError(f"`x` is a {x.dtype} tensor; combining tokens by {self.combine!r} takes a floating one.")
        size = ones_or_checked(size, x)
        if self.padding is not None:
            size = size.masked_fill(self.padding[..., None], 0)
        kept, merged = flat_rows(self.num_input, self.kept, self.merged)
        (into,) = flat_rows(self.num_output, self.into)
        flat_size = size.reshape(-1)  # (B, N, 1) -> (B*N,)
        merged_size = flat_size.index_select(0, merged)
        out_size = flat_size.index_select(0, kept).index_add(0, into, merged_size)
        return x.reshape(-1, x.shape[-1]), kept, merged, into, merged_size, out_size

    def _batch(self, rows: Tensor) -> Tensor:
        return rows.view(self.kept.shape[0], self.num_output, rows.shape[-1])  # (B*M, C) -> (B, M, C)

    def _members(self, flat: Tensor, out: Tensor, merged: Tensor, into: Tensor, merged_size: Tensor) -> Tensor:
        members = flat.index_select(0, merged)
        if self.padding is None:
            return members
        # padding that goes into a token is made equal to it, and so changes nothing
        return torch.where((merged_size > 0)[:, None], members, out.index_select(0, into))

    def _combine(self, out: Tensor, members: Tensor, into: Tensor, merged_size: Tensor, out_size: Tensor) -> Tensor:
        # out (B*M, C); members (B*R, C); into, merged_size (B*R,); out_size (B*M,)
        if self.combine == "max":
            return out.scatter_reduce(0, into[:, None].expand_as(members), members, "amax", include_self=True)
        if self.combine == "mean":
            merged_size = (merged_size > 0).to(merged_size.dtype)
            out_size = torch.ones_like(out_size).index_add(0, into, merged_size)
        # A mean over dst and its members, written as dst plus a share of each difference, touches R rows only.
        # Two tokens of padding (size 0) may meet; their share is then 0, not 0/0.
        share = merged_size / out_size.index_select(0, into).clamp(min=1e-12)
        # `members` and `out` are fresh copies whose values no backward needs, so both can be changed in place.
        target = out.index_select(0, into)
        if out.dtype == torch.float16:
            # The difference of two tokens may be beyond float16 where their mean is not; half of its share never is.
            half = (0.5 * share)[:, None].to(out.dtype)
            difference = members.mul_(half).addcmul_(target, half, value=-1)
            return out.index_add_(0, into, difference).index_add_(0, into, difference)
        return out.index_add_(0, into, members.sub_(target).mul_(share[:, None].to(out.dtype)))

    def unmerge(self, x: Tensor) -> Tensor:
        """Copy each merged token back to its members (see the base class)."""
        check_tokens(x, self.kept.shape[0], self.num_output)
        source = self.source
        restored = take(x, source.clamp(min=0))
        if self.padding is not None or self.kept.shape[1] + self.merged.shape[1] < self.num_input:
            restored = restored.masked_fill((source < 0)[..., None], 0)
        return restored

    @property
    def source(self) -> Tensor:
        """Where each input token went (see the base class)."""
        batch_size = self.kept.shape[0]
        source = self.kept.new_full((batch_size, self.num_input), -1)
        outputs = torch.arange(self.num_output, device=self.kept.device).expand(batch_size, -1)
        source = source.scatter(1, self.kept, outputs).scatter(1, self.merged, self.into)
        return source if self.padding is None else source.masked_fill(self.padding, -1)

    @property
    def representative(self) -> Tensor:
        """The input token that each output token started from (see the base class)."""
        return self.kept


def _keep_norm(out: Tensor, members: Tensor, into: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Combine as a weighted mean, and bring each mean to the weighted mean of its members' norms.

    A mean of vectors is shorter than they are, unless they point the same way; later blocks know vectors of full
    length. `out` (B*M, C), `members` (B*R, C), `into` and `share` (B*R,); rows without members keep their bits.
    Returns the tokens, and what share of their length each mean had (B*M,).
    """
    full = torch.promote_types(out.dtype, torch.float32)
    out, members = out.to(full), members.to(full)
    length, member_length = (torch.linalg.vector_norm(x, dim=-1) for x in (out, members))
    length = length.index_add(0, into, (member_length - length.index_select(0, into)) * share)
    mean = out.index_add(0, into, (members - out.index_select(0, into)) * share[:, None])
    tiny = torch.finfo(full).tiny
    mean_length = torch.linalg.vector_norm(mean, dim=-1)
    stretch = length / mean_length.clamp(min=tiny)
    left = torch.where(length > 0, mean_length / length.clamp(min=tiny), 1).clamp(max=1).detach()
    return mean * stretch.clamp(max=MAX_STRETCH)[:, None], left


def identity_merge(batch_size: int, num_tokens: int, device: torch.device, padding: Tensor | None = None) -> HardMerge:
    """Return the merge that changes nothing."""
    kept = torch.arange(num_tokens, device=device).expand(batch_size, -1)
    none = kept.new_empty((batch_size, 0))
    return HardMerge(kept, none, none, num_tokens, padding=padding)


def pair_merge(
    merged: Tensor, partner: Tensor, rows: Tensor, num_special: int, combine: str, padding: Tensor | None = None
) -> HardMerge:
    """Build the merge of the tokens `merged` (B, R) into the tokens `partner` (B, R); `move_back` orders the rest."""
    num_output = rows.shape[1] - merged.shape[1]
    order = move_back(rows, merged, num_special, padding)
    kept, merged_rows = order[:, :num_output], order[:, num_output:]
    outputs = torch.arange(num_output, device=rows.device).expand(rows.shape[0], -1)
    row_of = torch.zeros_like(rows).scatter(1, kept, outputs)
    partner_of = torch.zeros_like(rows).scatter(1, merged, partner)
    into = row_of.gather(1, partner_of.gather(1, merged_rows))
    return HardMerge(kept, merged_rows, into, rows.shape[1], combine, padding)


def move_back(rows: Tensor, leaving: Tensor, num_special: int, padding: Tensor | None = None) -> Tensor:
    """Return all tokens in the order of `rows` (B, N), but for those that are `leaving` (B, R), which come last.

    Where some are `padding` (B, N), an image fares as if it were alone: its real tokens come first, so that the next
    block splits them as it would then; and no more of them leave than could then, the first of `leaving`, so that the
    last R have padding among them.
    """
    leaves = torch.ones_like(leaving, dtype=torch.bool)
    if padding is not None:
        num_real = (~padding).sum(dim=1, keepdim=True)
        leaves = torch.arange(leaving.shape[1], device=rows.device) < (num_real - num_special) // 2
    gone = torch.zeros_like(rows, dtype=torch.bool).scatter(1, leaving, leaves)
    rank = gone.int() if padding is None else torch.where(gone, 2, padding.int())
    return rows.gather(1, rank.gather(1, rows).argsort(dim=1, stable=True))


def check_arguments(metric: Tensor, num_special: int, r: int = 0, size: Tensor | None = None) -> None:
    """Raise a `ValueError` unless `metric` is a floating (B, N, D) tensor, and the rest fits it."""
    check_floating("metric", metric, "(batch_size, num_tokens, dim)")
    batch_size, num_tokens = metric.shape[:2]
    if not 0 <= num_special <= num_tokens:
        raise ValueError(
            f"`num_special` is {num_special}; with {num_tokens} tokens it takes an integer from 0 to {num_tokens}."
        )
    if isinstance(r, (bool, float)) or not hasattr(r, "__index__") or r < 0:
        raise ValueError(f"`r` is {r}; it takes an integer of at least 0.")
    if size is not None:
        check_size(size, batch_size, num_tokens)


def check_floating(name: str, tensor: Tensor, shape: str) -> None:
    """Raise a `ValueError` unless a tensor is floating, and has as many dimensions as the `shape` that is told."""
    if tensor.ndim != shape.count(",") + 1 or not tensor.is_floating_point():
        raise ValueError(
            f"`{name}` is a {tensor.dtype} tensor of shape {tuple(tensor.shape)}; "
            f"it takes a floating point tensor {shape}."
        )


def check_size(size: Tensor, batch_size: int, num_tokens: int) -> None:
    """Raise a `ValueError` unless `size` is (B, N, 1)."""
    if size.shape != (batch_size, num_tokens, 1):
        raise ValueError(f"`size` has shape {tuple(size.shape)}; it takes {(batch_size, num_tokens, 1)}.")


def check_tokens(x: Tensor, batch_size: int, num_tokens: int) -> None:
    """Raise a `ValueError` unless `x` is (B, N, C)."""
    if x.ndim != 3 or x.shape[:2] != (batch_size, num_tokens):
        raise ValueError(f"`x` has shape {tuple(x.shape)}; this merge takes ({batch_size}, {num_tokens}, channels).")


def ones_or_checked(size: Tensor | None, x: Tensor) -> Tensor:
    """Return `size` (B, N, 1), or sizes of 1, in float32 at least: counts are never rounded to half precision."""
    if size is None:
        return x.new_ones((*x.shape[:2], 1), dtype=torch.promote_types(x.dtype, torch.float32))
    check_size(size, *x.shape[:2])
    return size.to(torch.promote_types(size.dtype, torch.float32))

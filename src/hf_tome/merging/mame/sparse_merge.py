"""The merge by the few pairs of MaMe's weights that are not zero."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from ..base import Merge, check_tokens, ones_or_checked
from .matrix_merge import MatrixMerge, in_range
from .sparse import Booleans, Connections, Floats, Integers


class SparseMatrixMerge(MatrixMerge):
    """A `MatrixMerge` on a CPU that touches the tokens of its pairs alone.

    What only unmerging, tracing or a gradient reads, matrices and tensors of positions, is made where it is read.

    Args:
        connections (`Connections`): the pairs and their weights.
        padding (`Tensor`, *optional*): (B, N) bool, the input tokens that count for nothing.
        num_output (`int`, *optional*): M, where it is known beforehand.
    """

    def __init__(self, connections: Connections, padding: Tensor | None = None, num_output: int | None = None):
        self.connections, self.num_special = connections, connections.num_special
        self._rows, is_real = _output_rows(connections, padding, num_output)
        self.real = None if is_real is None else torch.from_numpy(is_real)
        self._lengths = [self.num_special, connections.num_destinations, connections.gone.shape[1]]
        self.num_input, self.num_output = connections.num_tokens, self._rows.shape[1]
        self._kept = _grouped_positions(self.num_special, self.num_input)[self._rows]  # (B, M)
        self._positions = None

    @functools.cached_property
    def weights(self) -> Tensor:  # type: ignore[override]
        """See the base class."""
        return self.connections.dense()

    @property
    def sources(self) -> Tensor:  # type: ignore[override]
        """See the base class."""
        return torch.arange(self.num_special, self.num_input, 2)

    @property
    def destinations(self) -> Tensor:  # type: ignore[override]
        """See the base class."""
        return torch.arange(self.num_special + 1, self.num_input, 2)

    @property
    def order(self) -> Tensor:  # type: ignore[override]
        """See the base class."""
        return torch.from_numpy(self._rows)

    @property
    def representative(self) -> Tensor:
        """See the base class."""
        return torch.from_numpy(self._kept)

    @property
    def preserved(self) -> Tensor:
        """See the base class."""
        return torch.from_numpy(~self.connections.gone)

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fuse sources into destinations (equation 9) and concatenate (equation 10); see the base class."""
        if torch.is_grad_enabled() and x.requires_grad:
            return super().merge(x, size)
        (batch_size, num_output), channels = self._kept.shape, x.shape[-1]
        check_tokens(x, batch_size, self.num_input)
        size = ones_or_checked(size, x)
        rows = self._kept if batch_size == 1 else self._kept + np.arange(batch_size)[:, None] * self.num_input
        rows = rows.reshape(-1)  # (B*M,), of (B*N,)
        tokens, sizes = x.reshape(-1, channels), size.detach().reshape(-1).numpy()
        out, out_size = tokens.index_select(0, torch.from_numpy(rows)), sizes[rows]
        if self.connections.weight.shape[0] > 0:
            self._fuse_pairs(tokens, sizes, out, out_size)
        merged_size = torch.from_numpy(out_size).view(batch_size, num_output, 1)
        return out.view(batch_size, num_output, channels), self._real_sizes(merged_size)

    def _fuse_pairs(self, tokens: Tensor, sizes: Floats, out: Tensor, out_size: Floats) -> None:
        """Bring the sources among `tokens` (B*N, C) into the destinations among `out` (B*M, C), and their sizes."""
        pairs, num_rows = self.connections, out.shape[0]
        target = pairs.image * self.num_output + (pairs.destination + self.num_special)  # (E,), of (B*M,)
        source = pairs.image * self.num_input + (2 * pairs.source + self.num_special)  # (E,), of (B*N,)
        # Normalised before the sum: a sum of tokens may be beyond half precision where their mean is not.
        own = 1 / (1 + np.bincount(target, pairs.weight, num_rows))  # (B*M,)
        takes_in = own < 1
        place = np.cumsum(takes_in)[target] - 1  # the number of each pair's target among those that take something in
        full = torch.promote_types(tokens.dtype, torch.float32)
        # A source that is not a number spoils none but itself.
        members = tokens.index_select(0, torch.from_numpy(source)).to(full).nan_to_num_(0.0, 0.0, 0.0)
        members.mul_(torch.from_numpy(pairs.weight * own[target]).to(full)[:, None])
        rows = torch.from_numpy(np.flatnonzero(takes_in))
        destinations = out.index_select(0, rows)
        mean = destinations.to(full) * torch.from_numpy(own[takes_in]).to(full)[:, None]
        mean = mean.index_add_(0, torch.from_numpy(place), members).to(out.dtype)
        out.index_copy_(0, rows, in_range(mean, destinations))
        # Sizes are counts: they weight pooling. Epsilon in equation 8 leaves columns a little short of 1; a source's
        # size is shared out whole.
        out_size += np.bincount(target, pairs.share * sizes[source], num_rows).astype(out_size.dtype)

    def weights_of_grad(self) -> Tensor | None:
        """Return `None`: no gradient runs through the matching (see the base class)."""
        return None

    def to(self, device: torch.device) -> Merge:
        """Return the same merge of tokens on `device`; pairs become a matrix there (see the base class)."""
        return self if device.type == "cpu" else self.detach().to(device)


def _output_rows(
    connections: Connections, padding: Tensor | None, num_output: int | None
) -> tuple[Integers, Booleans | None]:
    """Return which rows of [special, destinations, sources] come out, (B, M), and which of those are real, (B, M).

    Real rows first, in order; where images differ in number, the shorter ones are filled up with rows that are gone.
    """
    batch_size, num_sources = connections.gone.shape
    gone = np.zeros((batch_size, connections.num_tokens), dtype=bool)
    gone[:, -num_sources:] = connections.gone
    if padding is not None:
        gone |= padding.numpy()[:, _grouped_positions(connections.num_special, connections.num_tokens)]
    counts = connections.num_tokens - gone.sum(axis=1)
    if padding is None and (counts == counts[0]).all():
        return np.nonzero(~gone)[1].reshape(batch_size, -1), None
    num_output = counts.max() if num_output is None else num_output
    order = np.argsort(gone, axis=1, kind="stable")[:, :num_output]
    return order, np.arange(num_output) < counts[:, None]


@functools.lru_cache(maxsize=512)
def _grouped_positions(num_special: int, num_tokens: int) -> Integers:
    """Return the positions in the order [special, destinations, sources], (N,)."""
    positions = np.arange(num_tokens)
    return np.concatenate([positions[:num_special], positions[num_special + 1 :: 2], positions[num_special::2]])

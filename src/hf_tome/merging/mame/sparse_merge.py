"""The merge by the few pairs of MaMe's weights that are not zero."""

from __future__ import annotations

import functools
import math
import weakref

import numpy as np
import torch
from torch import Tensor

from ..base import Merge, check_tokens, ones_or_checked
from .matrix_merge import MatrixMerge, in_range
from .row_sums import Members, weighted_means
from .screen import Booleans, Integers
from .sparse import Connections


class SparseMatrixMerge(MatrixMerge):
    """A `MatrixMerge` on a CPU that touches the tokens of its pairs alone.

    What only unmerging or tracing reads, matrices and tensors of positions, is made where it is read.

    Args:
        connections (`Connections`): the pairs and their weights.
        padding (*optional*): (B, N), the input tokens that count for nothing.
        num_output (`int`, *optional*): M, where it is known beforehand.
        checked (`Tensor`, *optional*): tokens that hold nothing but numbers.
    """

    def __init__(
        self,
        connections: Connections,
        padding: Booleans | None = None,
        num_output: int | None = None,
        checked: Tensor | None = None,
    ):
        self.connections, self.num_special = connections, connections.num_special
        self._rows, self._is_real = _output_rows(connections, padding, num_output)
        self.real = None if self._is_real is None else torch.from_numpy(self._is_real)
        self._lengths = [self.num_special, connections.num_destinations, connections.gone.shape[1]]
        self.num_input, self.num_output = connections.num_tokens, self._rows.shape[1]
        self._kept = _grouped_positions(self.num_special, self.num_input)[self._rows]  # (B, M)
        self._positions = None
        self._checked = _nothing if checked is None else weakref.ref(checked)

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """See the base class."""
        # Made anew each time: a block that checkpointing runs again has to save as many tensors as it did before.
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
        (batch_size, num_output), channels = self._kept.shape, x.shape[-1]
        check_tokens(x, batch_size, self.num_input)
        pairs = self.connections
        (joining,) = pairs.weight.nonzero()
        members, weights = self._members(joining), pairs.differentiable
        tokens = x.reshape(-1, channels)
        # In float32: a sum of tokens may be beyond half precision where their mean is not.
        full = tokens if tokens.dtype in (torch.float32, torch.float64) else tokens.float()
        out = weighted_means(full, members, None if weights is None else weights[torch.from_numpy(joining)])
        if joining.shape[0] > 0 and x is not self._checked() and not math.isfinite(out.detach().sum().item()):
            return super().merge(x, size)  # a source that is not a number spoils none but itself
        if out.dtype != x.dtype:
            out = in_range(out.to(x.dtype), tokens.index_select(0, torch.from_numpy(members.kept)))
        # Sizes are counts: they weight pooling, but no gradient runs through them. Epsilon in equation 8 leaves
        # columns a little short of 1; a source's size is shared out whole.
        shares, rows = pairs.share[joining], members.rows
        sizes = None if size is None else ones_or_checked(size, x).detach().reshape(-1).numpy()
        shares = shares if sizes is None else shares * sizes[rows[0]]
        out_size = np.bincount(members.target, shares, batch_size * num_output)
        out_size = out_size + (1 if sizes is None else sizes[members.kept])
        dtype = np.float64 if x.dtype == torch.float64 else np.float32
        if self._is_real is not None:
            out_size *= self._is_real.reshape(-1)
        merged_size = torch.from_numpy(out_size.astype(dtype if sizes is None else sizes.dtype))
        return out.view(batch_size, num_output, channels), merged_size.view(batch_size, num_output, 1)

    def _members(self, joining: Integers) -> Members:
        """Return which tokens (B * N,) go into each token that comes out, (B * M,), by the pairs `joining`."""
        pairs, (batch_size, num_output) = self.connections, self._kept.shape
        target = pairs.destination[joining] + self.num_special
        target += pairs.image[joining] * (num_output - pairs.num_destinations)
        kept = self._kept if batch_size == 1 else self._kept + np.arange(batch_size)[:, None] * self.num_input
        return Members(kept.reshape(-1), target, pairs.rows[:, joining], pairs.weight[joining])

    def weights_of_grad(self) -> Tensor | None:
        """Return the fusion weights where a gradient runs through them (see the base class)."""
        return None if self.connections.differentiable is None else self.weights

    def to(self, device: torch.device) -> Merge:
        """Return the same merge of tokens on `device`; pairs become a matrix there (see the base class)."""
        return self if device.type == "cpu" else self.detach().to(device)


def _nothing() -> None:
    return None


def _output_rows(
    connections: Connections, padding: Booleans | None, num_output: int | None
) -> tuple[Integers, Booleans | None]:
    """Return which rows of [special, destinations, sources] come out, (B, M), and which of those are real, (B, M).

    Real rows first, in order; where images differ in number, the shorter ones are filled up with rows that are gone.
    """
    batch_size, num_sources = connections.gone.shape
    stays = np.empty((batch_size, connections.num_tokens), bool)
    stays[:, :-num_sources] = True
    np.logical_not(connections.gone, out=stays[:, -num_sources:])
    if padding is None:
        if batch_size == 1:
            return stays.nonzero()[1][None], None
        counts = stays.sum(axis=1)
        if (counts == counts[0]).all():
            return np.nonzero(stays)[1].reshape(batch_size, -1), None
    else:
        stays &= ~padding[:, _grouped_positions(connections.num_special, connections.num_tokens)]
        counts = stays.sum(axis=1)
    num_output = counts.max() if num_output is None else num_output
    order = np.argsort(~stays, axis=1, kind="stable")[:, :num_output]
    return order, np.arange(num_output) < counts[:, None]


@functools.lru_cache(maxsize=512)
def _grouped_positions(num_special: int, num_tokens: int) -> Integers:
    """Return the positions in the order [special, destinations, sources], (N,)."""
    positions = np.arange(num_tokens)
    return np.concatenate([positions[:num_special], positions[num_special + 1 :: 2], positions[num_special::2]])

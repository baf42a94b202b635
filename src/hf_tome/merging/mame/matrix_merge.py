"""The merge by MaMe's matrix of weights, and MaRe, its restoration (Huo & Li, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base import Merge, check_tokens, ones_or_checked
from ..indexing import has_cpu_values, take
from ..similarity import full_precision


class MatrixMerge(Merge):
    """A merge in which a source is shared out among several destinations.

    Attributes:
        weights (`Tensor`): the fusion weights W^F of equation 8, (B, T, S), columns of preserved sources zero.
        sources, destinations (`Tensor`): their positions in the input, (S,) and (T,), or (B, S) and (B, T).
        order (`Tensor`): (B, M) int64, the rows of [special, destinations, sources] that come out.
        real (`Tensor` or `None`): (B, M) bool, False where a row of `order` is padding.
    """

    def __init__(
        self,
        weights: Tensor,
        sources: Tensor,
        destinations: Tensor,
        order: Tensor,
        num_special: int,
        real: Tensor | None = None,
    ):
        self.sources, self.destinations = sources, destinations
        self.order, self.real, self.num_special = order, real, num_special
        self._lengths = [num_special, destinations.shape[-1], sources.shape[-1]]
        self.num_input, self.num_output = sum(self._lengths), order.shape[1]
        self.weights = weights
        self._positions: Tensor | None = None

    @property
    def _grouped(self) -> Tensor:
        """The input positions in the order [special, destinations, sources], (N,) or (B, N)."""
        if self._positions is None:  # (`functools.cached_property` has a lock, which breaks graphs)
            self._positions = grouped_positions(self.num_special, self.destinations, self.sources)
        return self._positions

    @property
    def preserved(self) -> Tensor:
        """The sources that stay tokens of their own (the mask m of section 3.3), (B, S) bool."""
        return ~(self.weights.detach().sum(dim=1) > 0)

    @property
    def _fuses_all_sources(self) -> bool:
        """Whether what comes out are the special tokens and the destinations of every image, in their order."""
        return self.real is None and self.num_output == self._lengths[0] + self._lengths[1]

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fuse sources into destinations (equation 9) and concatenate (equation 10); see the base class.

        A source's size is shared out by its column, so that sizes still sum to N.
        """
        check_tokens(x, self.order.shape[0], self.num_input)
        size = ones_or_checked(size, x)
        special, destinations, sources = take(x, self._grouped).split(self._lengths, dim=1)
        fused = self._fuse(destinations, sources)
        if self._fuses_all_sources:
            out = torch.cat([special, fused], dim=1)
        else:
            out = take(torch.cat([special, fused, sources], dim=1), self.order)

        # Sizes are counts: they weight pooling, but no gradient runs through them. Epsilon in equation 8 leaves
        # columns a little short of 1; a source's size is shared out whole.
        special_size, destination_size, source_size = take(size, self._grouped).split(self._lengths, dim=1)
        share = self.weights.detach().to(size.dtype)
        total = share.sum(dim=1)[..., None].masked_fill(self.preserved[..., None], 1)
        with full_precision(x.device):
            fused_size = destination_size + share @ (source_size / total)
        if self._fuses_all_sources:
            return out, torch.cat([special_size, fused_size], dim=1)
        out_size = take(torch.cat([special_size, fused_size, source_size], dim=1), self.order)
        return out, self._real_sizes(out_size)

    def _real_sizes(self, size: Tensor) -> Tensor:
        return size if self.real is None else size * self.real[..., None]

    def _fuse(self, destinations: Tensor, sources: Tensor) -> Tensor:
        """Return the means of destinations (B, T, C) with their shares of sources (B, S, C) (equation 9)."""
        # A weight of 0 times NaN would be NaN, so that one such source would spoil every destination.
        sources = _finite(sources)
        if torch.finfo(sources.dtype).bits < 32:
            # Normalised before the product: a sum of tokens may be beyond half precision where their mean is not.
            own = 1 / (1 + self.weights.sum(dim=-1, keepdim=True))  # (B, T, 1)
            weights = (self.weights * own).to(sources.dtype)
            with full_precision(sources.device):
                return in_range(destinations * own.to(sources.dtype) + weights @ sources, destinations)
        # One product sums tokens and weights: fewer passes over matrices, forward and backward.
        with_ones = nn.functional.pad(sources, (0, 1), value=1.0)  # (B, S, C + 1)
        # Transposed, so that the gradient of the weights lies in memory as they do, source by source.
        by_source = self.weights.to(sources.dtype).transpose(1, 2)  # (B, S, T)
        with full_precision(sources.device):
            sums = (with_ones.transpose(1, 2) @ by_source).transpose(1, 2)  # (B, T, C + 1)
        shares, total = sums.tensor_split([sources.shape[-1]], dim=-1)
        return (destinations + shares) / (1 + total)

    def unmerge(self, x: Tensor) -> Tensor:
        """Read a fused source back as its column's weighted sum of destinations (MaRe); see the base class."""
        check_tokens(x, self.order.shape[0], self.num_output)
        home = self._home()
        grouped = take(x, home.clamp(min=0))  # (B, M, C) -> (B, N, C), [special, destinations, sources]
        if self.real is not None:
            grouped = grouped.masked_fill((home < 0)[..., None], 0)
        special, destinations, sources = grouped.split(self._lengths, dim=1)
        with full_precision(x.device):
            restored = self.weights.to(x.dtype).transpose(1, 2) @ _finite(destinations)
        restored = in_range(restored, restored.new_zeros(()))
        restored = torch.where(self.preserved[..., None], sources, restored)
        grouped = torch.cat([special, destinations, restored], dim=1)
        return take(grouped, self._grouped.argsort())

    def detach(self) -> MatrixMerge:
        """Return the same merge with constant weights (see the base class)."""
        return MatrixMerge(
            self.weights.detach(), self.sources, self.destinations, self.order, self.num_special, self.real
        )

    def weights_of_grad(self) -> Tensor | None:
        """Return the fusion weights (see the base class)."""
        return self.weights

    def may_pad(self, was_padded: bool) -> bool:
        """Whether some output is padding (see the base class)."""
        return self.real is not None

    @property
    def source(self) -> Tensor:
        """Where each input token went, a shared source to its heaviest destination (see the base class)."""
        home = self._home()
        special, destinations, sources = home.split(self._lengths, dim=1)
        if destinations.shape[1] > 0:
            heaviest = destinations.gather(1, self.weights.argmax(dim=1))  # (B, S)
            home = torch.cat([special, destinations, torch.where(self.preserved, sources, heaviest)], dim=1)
        return take(home, self._grouped.argsort())

    def _home(self) -> Tensor:
        """Return the output row of each of [special, destinations, sources], (B, N); -1 for fused sources, padding."""
        home = self.order.new_full((self.order.shape[0], self.num_input), -1)
        outputs = torch.arange(self.num_output, device=home.device).expand(home.shape[0], -1)
        return home.scatter(1, self.order, outputs if self.real is None else torch.where(self.real, outputs, -1))

    @property
    def representative(self) -> Tensor:
        """The input token that each output token started from (see the base class)."""
        return self._grouped.expand(self.order.shape[0], -1).gather(1, self.order)


def grouped_positions(num_special: int, destinations: Tensor, sources: Tensor) -> Tensor:
    """Return the input positions in the order [special, destinations, sources], (N,) or (B, N)."""
    special = torch.arange(num_special, device=sources.device).expand(*sources.shape[:-1], -1)
    return torch.cat([special, destinations, sources], dim=-1)


def _finite(x: Tensor) -> Tensor:
    """Return tokens with zeros for what is not finite; on a CPU looking is cheaper than writing, and its gradient."""
    if has_cpu_values(x) and x.detach().sum().isfinite().item():
        return x
    return x.nan_to_num(0.0, 0.0, 0.0)


def in_range(mean: Tensor, tokens: Tensor) -> Tensor:
    """Keep means in float16 finite where the `tokens` are: rounded shares may add up to a little more than 1."""
    if mean.dtype != torch.float16:
        return mean
    largest = torch.finfo(mean.dtype).max
    return torch.where(tokens.isfinite(), mean.clamp(-largest, largest), mean)

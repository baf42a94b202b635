"""MaMe: matrix merging, and MaRe, its restoration (Huo & Li, CVPR 2026 Findings, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base import Merge, check_arguments, check_tokens, ones_or_checked
from ..indexing import take
from ..method import Fields, GridInputs, MatchInputs, Method, two_halves
from ..partition import sources_beside, split
from ..similarity import full_precision, similarity
from .sparse import LOWEST_THRESHOLD, TIE, Connections, find_connections, in_range, merge_connected

BATCHINGS = ("pad", "union")
"""How images of a batch that keep unequal numbers of tokens go together; see `matrix_matching`."""


class MatrixMerge(Merge):
    """A merge in which a source is shared out among several destinations.

    Attributes:
        connections (`Connections`, *optional*): the weights, where they are kept as pairs.
        sources, destinations (`Tensor`): their positions in the input, (S,) and (T,), or (B, S) and (B, T).
        order (`Tensor`): (B, M) int64, the rows of [special, destinations, sources] that come out.
        real (`Tensor` or `None`): (B, M) bool, False where a row of `order` is padding.
    """

    def __init__(
        self,
        weights: Tensor | Connections,
        sources: Tensor,
        destinations: Tensor,
        order: Tensor,
        num_special: int,
        real: Tensor | None = None,
    ):
        self.sources, self.destinations = sources, destinations
        self.order, self.real, self.num_special = order, real, num_special
        self.connections = weights if isinstance(weights, Connections) else None
        self._weights = None if isinstance(weights, Connections) else weights
        self._lengths = [num_special, destinations.shape[-1], sources.shape[-1]]
        self.num_input, self.num_output = sum(self._lengths), order.shape[1]
        self._positions: Tensor | None = None

    @property
    def _grouped(self) -> Tensor:
        """The input positions in the order [special, destinations, sources], (N,) or (B, N)."""
        if self._positions is None:  # (`functools.cached_property` has a lock, which breaks graphs)
            self._positions = _grouped(self.num_special, self.destinations, self.sources)
        return self._positions

    @property
    def preserved(self) -> Tensor:
        """The sources that stay tokens of their own (the mask m of section 3.3), (B, S) bool."""
        gone = self.weights.detach().sum(dim=1) > 0 if self.connections is None else self.connections.gone
        return ~gone

    @property
    def weights(self) -> Tensor:
        """The fusion weights W^F of equation 8, (B, T, S), columns of preserved sources zero."""
        if self.connections is not None and self._weights is None:
            self._weights = self.connections.dense()
        assert self._weights is not None
        return self._weights

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Fuse sources into destinations (equation 9) and concatenate (equation 10); see the base class.

        A source's size is shared out by its column, so that sizes still sum to N.
        """
        check_tokens(x, self.order.shape[0], self.num_input)
        size = ones_or_checked(size, x)
        if self.connections is not None and not (torch.is_grad_enabled() and x.requires_grad):
            out, out_size = merge_connected(x, size, self.connections, self.num_special, self.representative)
            return out, out_size if self.real is None else out_size * self.real[..., None]
        special, destinations, sources = take(x, self._grouped).split(self._lengths, dim=1)
        # Normalised before the product: a sum of tokens may be beyond half precision where their mean is not.
        own = 1 / (1 + self.weights.sum(dim=-1, keepdim=True))  # (B, T, 1)
        weights = (self.weights * own).to(x.dtype)
        # A weight of 0 times NaN would be NaN, so that one such source would spoil every destination.
        with full_precision(x.device):
            shares = weights @ sources.nan_to_num(0.0, 0.0, 0.0)
        fused = in_range(destinations * own.to(x.dtype) + shares, destinations)
        out = take(torch.cat([special, fused, sources], dim=1), self.order)

        # Sizes are counts: they weight pooling, but no gradient runs through them. Epsilon in equation 8 leaves
        # columns a little short of 1; a source's size is shared out whole.
        special_size, destination_size, source_size = take(size, self._grouped).split(self._lengths, dim=1)
        share = self.weights.detach().to(size.dtype)
        total = share.sum(dim=1)[..., None].masked_fill(self.preserved[..., None], 1)
        with full_precision(x.device):
            fused_size = destination_size + share @ (source_size / total)
        out_size = take(torch.cat([special_size, fused_size, source_size], dim=1), self.order)
        return out, out_size if self.real is None else out_size * self.real[..., None]

    def unmerge(self, x: Tensor) -> Tensor:
        """Read a fused source back as its column's weighted sum of destinations (MaRe); see the base class."""
        check_tokens(x, self.order.shape[0], self.num_output)
        home = self._home()
        grouped = take(x, home.clamp(min=0))  # (B, M, C) -> (B, N, C), [special, destinations, sources]
        if self.real is not None:
            grouped = grouped.masked_fill((home < 0)[..., None], 0)
        special, destinations, sources = grouped.split(self._lengths, dim=1)
        with full_precision(x.device):
            restored = self.weights.to(x.dtype).transpose(1, 2) @ destinations.nan_to_num(0.0, 0.0, 0.0)
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
        return None if self.connections is not None else self.weights

    def to(self, device: torch.device) -> Merge:
        """Return the same merge of tokens on `device`; pairs become a matrix there (see the base class)."""
        if self.connections is None or device == self.order.device:
            return super().to(device)
        dense = MatrixMerge(self.weights, self.sources, self.destinations, self.order, self.num_special, self.real)
        return dense.to(device)

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


def _grouped(num_special: int, destinations: Tensor, sources: Tensor) -> Tensor:
    """Return the input positions in the order [special, destinations, sources], (N,) or (B, N)."""
    special = torch.arange(num_special, device=sources.device).expand(*sources.shape[:-1], -1)
    return torch.cat([special, destinations, sources], dim=-1)


def matrix_matching(
    metric: Tensor,
    threshold: float = 0.8,
    num_special: int = 0,
    eps: float = 1e-6,
    adaptive_pruning: bool = True,
    *,
    batching: str = "pad",
    keep_ratio: float | None = None,
    size: Tensor | None = None,
    distance: str = "cosine",
    partition: str = "alternating",
    seed: int = 0,
    causal: bool = False,
    destinations: Tensor | None = None,
) -> MatrixMerge:
    """Match sources to every similar enough destination by one matrix (MaMe, equations 1 to 8).

    Args:
        metric (`Tensor`): (B, N, D), what similarity is measured on, usually the tokens themselves.
        threshold (`float`): tau of equation 3.
        num_special (`int`): leading tokens that are set aside. Of the rest, even positions are sources.
        eps (`float`): epsilon of equations 4, 5, 6 and 8.
        adaptive_pruning (`bool`): equations 5 to 8; without them W of equation 4 is used.
        batching (`str`): `"pad"` lets each image keep its own sources, and pads the shorter ones with tokens of size 0
            at the end. `"union"`, the paper's rule, preserves a source in all images if any image preserves it: hardly
            anything merges then in a batch of real photographs.
        keep_ratio (`float`, *optional*): keep this share of the unprotected tokens, at least the destinations: the
            sources with the most similar destination merge, whatever the threshold (section 4, training from scratch).
        size (`Tensor`, *optional*): (B, N, 1), where 0 marks padding, which takes no part and comes out last.
        distance, partition (`str`): the ablations of MaMe's figure 2.
        seed (`int`): for `partition="random"`.
        causal (`bool`): weights of earlier destinations are zeroed (section 5), so that tokens merge into later ones
            alone. As the paper prints it, what is left of a column is not brought back to 1.
        destinations (`Tensor`, *optional*): (B, T), ascending, the destinations themselves; all other tokens are
            sources. There are no special tokens and no padding then.

    Returns:
        `MatrixMerge`: special tokens, fused destinations, preserved sources, padding.

    Raises:
        ValueError: an unknown name, a number out of range, or tensors of the wrong shape.
    """
    check_arguments(metric, num_special, size=size)
    if batching not in BATCHINGS:
        raise ValueError(f"`batching` is {batching!r}; it takes one of {', '.join(map(repr, BATCHINGS))}.")
    if keep_ratio is not None and destinations is None and not 0.5 <= keep_ratio <= 1:
        raise ValueError(f"`keep_ratio` is {keep_ratio!r}; it takes None, or a number from 0.5 to 1.")
    if eps <= 0:
        raise ValueError(f"`eps` is {eps!r}; it takes a number above 0.")
    padding = None if size is None else size[..., 0] == 0  # (B, N)
    is_split = destinations is None and partition == "alternating"
    if destinations is None:
        sources, destinations = split(
            metric.shape[1], num_special, partition, metric.device, first=num_special, seed=seed, padding=padding
        )
    else:
        sources = sources_beside(destinations, metric.shape[1])
    is_plain = is_split and not causal and (distance, batching) == ("cosine", "pad")
    num_output = None if keep_ratio is None else num_special + kept_tokens(metric.shape[1] - num_special, keep_ratio)
    is_plain = is_plain and (keep_ratio is None or padding is None)
    if is_plain and adaptive_pruning and threshold >= LOWEST_THRESHOLD and _is_eager(metric):
        num_merged = None if num_output is None else metric.shape[1] - num_output
        connections = find_connections(metric, threshold, num_special, eps, padding, num_merged)
        if connections is not None:
            order, real = _order(connections.gone, sources, destinations, num_special, padding, num_output)
            return MatrixMerge(connections, sources, destinations, order, num_special, real)
    scores = paired_scores(metric, sources, destinations, distance, padding)  # (B, T, S), as in the paper
    weights = fusion_weights(scores, threshold, eps, adaptive_pruning)  # (B, T, S)
    if causal:
        earlier = sources[..., None, :] > destinations[..., :, None]
        weights, scores = weights.masked_fill(earlier, 0), scores.masked_fill(earlier, -torch.inf)
    if keep_ratio is not None:
        weights, num_output = _best_matched(scores, weights, keep_ratio, padding, num_special)
    elif batching == "union":
        merges = weights.detach().sum(dim=1, keepdim=True) > 0  # (B, 1, S)
        if padding is not None:
            merges = merges | take(padding, sources)[:, None]
        weights = weights * merges.all(dim=0, keepdim=True)
    gone = weights.detach().sum(dim=1) > 0  # (B, S)
    order, real = _order(gone, sources, destinations, num_special, padding, num_output)
    return MatrixMerge(weights, sources, destinations, order, num_special, real)


def _is_eager(metric: Tensor) -> bool:
    """Return whether shapes may depend on the data and no gradient runs through the matching, on a CPU."""
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    has_values = metric.device.type == "cpu" and type(metric) is Tensor and not is_traced
    return has_values and not (torch.is_grad_enabled() and metric.requires_grad)


def paired_scores(
    metric: Tensor, sources: Tensor, destinations: Tensor, distance: str, padding: Tensor | None
) -> Tensor:
    """Return the similarity of destinations (rows) to sources (columns), (B, T, S)."""
    scores, bias = similarity(_precise(metric), sources, destinations, distance, padding, bounded=True)
    return (scores + bias[..., None]).transpose(1, 2)


def _precise(metric: Tensor) -> Tensor:
    # Equation 8 divides by sums of differences that may be a few times TIE, so rounding of the similarities is
    # amplified a hundredfold. Double precision is cheap on a CPU; most accelerators are slow at it, or have none.
    return metric.double() if metric.device.type == "cpu" else metric


def fusion_weights(scores: Tensor, threshold: float, eps: float, adaptive_pruning: bool) -> Tensor:
    """Return W^F of equations 3 to 8, (B, T, S), from the similarity of destinations (rows) to sources (columns)."""
    # Padding scores minus infinity, and relu makes it exactly 0.
    sparse = (scores - threshold).relu_()
    weights = sparse / (sparse.sum(dim=1, keepdim=True) + eps)
    if not adaptive_pruning:
        return torch.threshold(weights, TIE, 0.0)
    count = (weights / (weights + eps)).sum(dim=1, keepdim=True)
    zeta = weights.sum(dim=1, keepdim=True) / (count + eps)
    if weights.requires_grad:
        pruned = torch.threshold(weights - zeta, TIE, 0.0)
        return pruned / (pruned.sum(dim=1, keepdim=True) + eps)
    pruned = torch.threshold_(weights.sub_(zeta), TIE, 0.0)
    return pruned.div_(pruned.sum(dim=1, keepdim=True) + eps)


def _best_matched(
    scores: Tensor, weights: Tensor, keep_ratio: float, padding: Tensor | None, num_special: int
) -> tuple[Tensor, int]:
    """Let the best matched sources merge, as many as `keep_ratio` asks of each image.

    Returns the weights (B, T, S) and M, the rows that come out of the longest image.
    """
    _, num_destinations, num_sources = scores.shape
    num_rest = num_destinations + num_sources
    num_kept = max(math.ceil(keep_ratio * num_rest), num_destinations)
    if num_destinations == 0:
        return weights, num_special + num_kept
    best, partner = scores.detach().max(dim=1)  # (B, S)
    num_merged: Tensor | int = num_rest - num_kept
    if padding is not None:
        num_rest_real = (~padding[:, num_special:]).sum(dim=1, keepdim=True)  # (B, 1)
        # In double precision, as above, so that an image keeps as many as it would alone. (MPS has none.)
        share = num_rest_real.to(torch.float32 if scores.device.type == "mps" else torch.float64)
        share = torch.ceil(keep_ratio * share).long()
        num_merged = num_rest_real - torch.maximum(share, num_rest_real // 2)
    rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    merged = rank < num_merged
    # A chosen source that no weight holds (nothing above the threshold, or a tie) goes to its best destination whole.
    whole = (partner[:, None] == torch.arange(num_destinations, device=scores.device)[:, None]).to(weights.dtype)
    weights = torch.where(weights.detach().sum(dim=1, keepdim=True) > 0, weights, whole)
    return weights * merged[:, None], num_special + num_kept


def _order(
    gone: Tensor,
    sources: Tensor,
    destinations: Tensor,
    num_special: int,
    padding: Tensor | None,
    num_output: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the rows of [special, destinations, sources] that come out where the sources `gone` (B, S) are fused."""
    gone = nn.functional.pad(gone, (num_special + destinations.shape[-1], 0))  # (B, N)
    if padding is not None:
        gone = gone | take(padding, _grouped(num_special, destinations, sources))
    return _arrange(gone, num_output, is_padded=padding is not None)


def _arrange(gone: Tensor, num_output: int | None, is_padded: bool) -> tuple[Tensor, Tensor | None]:
    """Return which rows come out, (B, M), and which of those are real, (B, M), of the rows (B, N) that may be `gone`.

    Real rows first, in order; where images differ in number, the shorter ones are filled up with rows that are gone.
    `num_output` is M where it is known beforehand: then nothing depends on the data, so that graphs can be compiled.
    """
    if num_output is None and gone.shape[0] == 1:
        return (~gone).nonzero()[:, 1][None], None
    if num_output is None:
        counts = (~gone).sum(dim=1)
        num_output, fewest = (
            torch.stack([counts.max(), counts.min()]).tolist() if gone.shape[0] else (gone.shape[1],) * 2
        )
        is_padded = is_padded or fewest < num_output
    order = gone.int().argsort(dim=1, stable=True)[:, :num_output]
    return order, ~gone.gather(1, order) if is_padded else None


def kept_tokens(num_tokens: int, keep_ratio: float) -> int:
    """Return how many of the unprotected tokens `keep_ratio` keeps: the share rounded up, at least destinations."""
    return max(math.ceil(keep_ratio * num_tokens), num_tokens // 2)


def _match(inputs: MatchInputs) -> Merge:
    fields = inputs.fields
    return matrix_matching(
        inputs.metric,
        fields["threshold"],
        inputs.num_prefix_tokens,
        adaptive_pruning=fields["adaptive_pruning"],
        batching=fields["batching"],
        keep_ratio=fields["keep_ratio"],
        size=inputs.size,
        distance=fields["distance"],
        partition=fields["partition"],
        seed=inputs.seed,
        causal=inputs.causal,
        destinations=inputs.destinations,
    )


def _match_grid(inputs: GridInputs) -> Merge:
    from .tiled import tiled_matrix_matching

    fields = inputs.fields
    return tiled_matrix_matching(
        inputs.metric,
        inputs.shape,
        threshold=fields["threshold"],
        keep_ratio=fields["keep_ratio"],
        adaptive_pruning=fields["adaptive_pruning"],
        tile=inputs.tile,
        stride=inputs.stride,
        seed=inputs.seed,
    )


def _first_two_thirds(num_layers: int) -> range:
    return range(2 * num_layers // 3)


def _planned_tokens(num_tokens: int, num_prefix_tokens: int, r: int, fields: Fields) -> int | None:
    if fields["keep_ratio"] is None:
        return None
    return num_prefix_tokens + kept_tokens(num_tokens - num_prefix_tokens, fields["keep_ratio"])


def _compared_pairs(before: float, after: float, num_prefix_tokens: int, fields: Fields) -> float:
    return two_halves(before - num_prefix_tokens)


METHOD = Method(
    "mame",
    _match,
    match_grid=_match_grid,
    fields=("threshold", "adaptive_pruning", "keep_ratio", "batching", "distance", "partition", "seed"),
    defaults={"metric": "x", "head_aggregation": "concat"},
    proportional=False,
    bipartite=True,
    layers=_first_two_thirds,
    planned_tokens=_planned_tokens,
    compared_pairs=_compared_pairs,
    search_field="threshold",
    search_values=tuple(step / 100 for step in range(98, 38, -2)),  # hardly anything merges to nearly everything
    label="MaMe",
    colour="#d55e00",
)

"""A merging method as one row: what it does with tokens, and all that the rest of the library asks about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .base import COMBINE_MODES, Merge
from .partition import PARTITIONS
from .similarity import DISTANCES

METRICS = ("x_pre", "x", "k", "q", "v")
HEAD_AGGREGATIONS = ("mean", "concat")
CHOICES: dict[str, tuple[str, ...]] = {
    "metric": METRICS,
    "distance": tuple(DISTANCES),
    "head_aggregation": HEAD_AGGREGATIONS,
    "combine": COMBINE_MODES,
    "partition": PARTITIONS,
}
"""The ablations of both papers: fields of a config whose default, `None`, is the method's own."""

DEFAULT_CHOICES = {
    "metric": "k",
    "distance": "cosine",
    "head_aggregation": "mean",
    "combine": "weighted_mean",
    "partition": "alternating",
}
MATCH_FIELDS = (
    "r",
    "threshold",
    "adaptive_pruning",
    "keep_ratio",
    "batching",
    "distance",
    "combine",
    "partition",
    "protect_attended",
    "kmeans_iterations",
    "seed",
)
"""The fields of a config that a method can ask for, in `Method.fields`."""

FIXED_METRICS = ("x", "received")
"""What a method can fix its metric to: the tokens, or the attention that each token receives, as scores (B, N)."""

Fields = Mapping[str, Any]
"""A method's own fields of a config, by name, with the method's default where one was left at `None`."""


@dataclass(frozen=True)
class MatchInputs:
    """What a method is given to match the tokens of one block.

    Attributes:
        metric: what similarity is measured on, (B, N, D); scores (B, N) where the method's metric is `"received"`.
        r: tokens to merge, at most half of those that may; 0 for a method without the field `r`.
        num_prefix_tokens: leading tokens that are never merged.
        size: (B, N, 1), where 0 marks padding; `None` where there is none.
        seed: for what is random; another one in each block.
        layer, num_layers: which block it is, and of how many.
        fields: the method's own fields, by name (`Method.fields`).
        attended: (B, N), the attention that the class token pays to each token, as a multiple of the mean over the
            tokens that may merge; given where the method has the field `protect_attended` and it is set.
        causal: whether tokens may merge into later ones alone; set for methods that are `bipartite` alone.
        destinations: (B, T), ascending, the tokens that the others merge into, where they are chosen already; set for
            methods that are `bipartite` alone, without padding or prefix tokens.
    """

    metric: Tensor
    r: int
    num_prefix_tokens: int = 0
    size: Tensor | None = None
    seed: int = 0
    layer: int = 0
    num_layers: int = 1
    fields: Fields = field(default_factory=dict)
    attended: Tensor | None = None
    causal: bool = False
    destinations: Tensor | None = None


@dataclass(frozen=True)
class GridInputs:
    """What a method is given to match the tokens of a grid, all of which are unmerged after the block.

    Attributes:
        metric: (B, N, D), what similarity is measured on; N is the product of `shape`.
        r: tokens to merge, at most.
        shape: (height, width) or (frames, height, width), in row-major order.
        tile: the side of the square within which tokens are compared; `None` for the whole frame.
        stride: height and width of a cell, of which one token is a destination.
        seed: for what is random; an int64 scalar, so that compiled graphs need not be compiled anew for each.
        fields: the method's own fields, by name (`Method.fields`).
    """

    metric: Tensor
    r: int
    shape: tuple[int, ...]
    tile: int | None
    stride: tuple[int, int]
    seed: int | Tensor
    fields: Fields = field(default_factory=dict)


def r_fewer(num_tokens: int, num_prefix_tokens: int, r: int, fields: Fields) -> int | None:
    """Return the tokens out of a block that loses `r`."""
    return num_tokens - r


def no_pairs(before: float, after: float, num_prefix_tokens: int, fields: Fields) -> float:
    """Return the pairs of tokens that are compared where nothing is."""
    return 0


def two_halves(num_tokens: float) -> float:
    """Return the pairs of tokens between two halves, of which the first may be one larger."""
    larger = -(-num_tokens // 2)
    return larger * (num_tokens - larger)


@dataclass(frozen=True, eq=False)
class Method:
    """A merging method.

    A method uses fields that `MergeConfig` has (`MATCH_FIELDS`), so that a config stays one validated, readable set of
    fields. A parameter that is none of them is bound in `match`, and two values of it are two methods.

    Attributes:
        name: as in `MergeConfig(method=...)`.
        match: makes the `Merge` of one block from `MatchInputs`.
        fields: the fields of a config that it uses, of `MATCH_FIELDS`. With `"r"` comes `ratio`; without it, the
            method decides itself how many tokens merge.
        defaults: its own defaults of the ablations (see `CHOICES`).
        metric: a fixed metric, of `FIXED_METRICS`; `None` where the config's `metric` is used.
        proportional: whether `proportional_attention="auto"` leaves the choice to the model's family; off if `False`.
        drops_tokens: whether tokens are dropped for good, so that they cannot be unmerged.
        bipartite: whether it matches sources to destinations, which may then be chosen or bounded from outside
            (`MatchInputs.destinations` and `causal`).
        places: the values of `MergeConfig.where` in which it means something; `None` for all.
        layers: the blocks that merge by default, from the number of blocks.
        planned_tokens: the tokens out of a merging block, from (tokens into it, prefix tokens, r, fields); `None`
            where it depends on the images. `r` is what the block merges at most.
        compared_pairs: how many pairs of tokens are compared, from (tokens in, tokens out, prefix tokens, fields).
        match_grid: makes the `Merge` of a grid's tokens from `GridInputs`; `None` where the method has no such form.
        grid_proportional: whether the keys of a grid's tokens get log(size) by default.
        search_field: the field that sweeps and tuning vary, from mild to strong.
        search_values: the values that tuning tries; `r` needs none, its values follow from the model.
        label: what tables and legends call it; the name by default.
        colour: in plots.
    """

    name: str
    match: Callable[[MatchInputs], Merge]
    fields: tuple[str, ...] = ("r",)
    defaults: Mapping[str, str] = field(default_factory=dict)
    metric: str | None = None
    proportional: bool = True
    drops_tokens: bool = False
    bipartite: bool = False
    places: tuple[str, ...] | None = None
    layers: Callable[[int], Sequence[int]] = range
    planned_tokens: Callable[[int, int, int, Fields], int | None] = r_fewer
    compared_pairs: Callable[[float, float, int, Fields], float] = no_pairs
    match_grid: Callable[[GridInputs], Merge] | None = None
    grid_proportional: bool = True
    search_field: str = "r"
    search_values: tuple[float, ...] = ()
    label: str = ""
    colour: str = "#009e73"

    def __call__(self, inputs: MatchInputs) -> Merge:
        """Match the tokens of one block.

        Raises:
            RuntimeError: a graph is being made that could not hold what this method does.
        """
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            self._check_graph(inputs)
        return self.match(inputs)

    def _check_graph(self, inputs: MatchInputs) -> None:
        if torch.jit.is_tracing() and torch.onnx.is_in_onnx_export():
            raise RuntimeError(
                "Merging needs a stable sort, which `torch.onnx.export(dynamo=False)` cannot write. Use "
                "`hf_tome.hub.export.export_onnx(model, path)`, or `hf-tome export`."
            )
        if self.planned_tokens(2, 0, 1, inputs.fields) is None:
            fixed = " Set `keep_ratio`, which fixes it." if "keep_ratio" in self.fields else ""
            raise RuntimeError(
                f"With the {self.search_field} of method {self.name!r} the number of tokens depends on the images; "
                f"a traced or exported graph has the shapes of its example.{fixed}"
            )

    @property
    def takes_r(self) -> bool:
        """Whether the config says how many tokens merge, by `r` or `ratio`."""
        return "r" in self.fields

    def default(self, choice: str) -> str:
        """Return the method's own value of an ablation."""
        return self.defaults.get(choice, DEFAULT_CHOICES[choice])

    def __reduce__(self) -> Any:
        # A model that is pickled or copied names its method: rows may hold functions that cannot be pickled.
        from .methods import METHODS, get_method

        return (get_method, (self.name,)) if METHODS.get(self.name) is self else super().__reduce__()

"""Where tokens merge: a row a value of `MergeConfig.where`, with the fields that mean something there."""

from __future__ import annotations

from dataclasses import dataclass

from ..merging.method import Method

COMMON_FIELDS = ("method", "where", "layers", "proportional_attention", "trace", "exact_last_block")
DENOISER_FIELDS = ("modules", "every", "min_tokens", "tile", "stride", "steps")
BLOCK_FIELDS = ("metric", "head_aggregation", "protect_attended", "restore", "exact_last_block", "batching")
"""Fields that mean something in the blocks of an encoder alone."""
CACHE_FIELDS = ("protect", "causal", "destinations", "size")


@dataclass(frozen=True)
class Place:
    """A place where tokens merge.

    Attributes:
        merges: what merges there, for messages.
        adds: fields that apply there for every method.
        omits: fields of methods that mean nothing there.
        unmerges: whether all tokens are unmerged after each block, so that no method can drop some.
        has_scores: whether the attention that each token receives is known.
    """

    merges: str
    adds: tuple[str, ...] = ()
    omits: tuple[str, ...] = ()
    unmerges: bool = False
    has_scores: bool = False


PLACES: dict[str, Place] = {
    "auto": Place(
        "tokens merge in the blocks of an encoder, or in a denoiser",
        adds=("towers", *DENOISER_FIELDS),
        has_scores=True,
    ),
    "tower": Place("tokens merge in the blocks of an encoder, one after the other", adds=("towers",), has_scores=True),
    "groups": Place(
        "whole groups of patches merge in the blocks of a packed tower, and stay merged to the language model",
        adds=("towers",),
        omits=("exact_last_block",),
        has_scores=True,
    ),
    "projected": Place(
        "no block merges: each image's projected tokens do, once, on their own similarity",
        omits=("layers", "proportional_attention", *BLOCK_FIELDS),
    ),
    "denoiser": Place(
        "each block merges a share of its tokens and unmerges them again",
        adds=("towers", *DENOISER_FIELDS),
        omits=("r", "partition", *BLOCK_FIELDS),
        unmerges=True,
    ),
    "cache": Place(
        "the entries of a cache merge, `keep_ratio` of which stay",
        adds=("keep_ratio", *CACHE_FIELDS),
        omits=("r", "ratio", "partition", "trace", *BLOCK_FIELDS),
        has_scores=True,
    ),
}
"""The values of `where`."""


def method_fields(method: Method) -> tuple[str, ...]:
    """Return the fields of a config that mean something to a method, in some place."""
    return (
        *COMMON_FIELDS,
        *method.fields,
        *(("ratio",) if method.takes_r else ()),
        *(("metric", "head_aggregation") if method.metric is None else ()),
        *(() if method.drops_tokens else ("restore",)),
    )


def applicable_fields(method: Method, place: str) -> frozenset[str]:
    """Return the fields of a config that mean something to a method in a place."""
    row = PLACES[place]
    means_nothing = (() if method.bipartite else ("causal", "destinations")) + (("size",) * method.drops_tokens)
    return ((frozenset(method_fields(method)) - set(row.omits)) | set(row.adds)) - set(means_nothing)


def why_not(method: Method, place: str) -> str | None:
    """Return why a method cannot merge in a place, or `None` where it can."""
    row = PLACES[place]
    if method.places is not None and place not in method.places:
        return f"means something with `where` {' or '.join(map(repr, method.places))} alone"
    if method.metric == "received" and not row.has_scores:
        return "needs the attention that tokens receive, which is known in an encoder's blocks and in a cache alone"
    if method.drops_tokens and row.unmerges and method.match_grid is None:
        return "drops tokens for good, and there all tokens are unmerged"
    return None

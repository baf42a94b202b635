"""Multiply-adds of an encoder with and without merging, counted from its config alone.

Counted as in the papers' tables: products of matrices, convolutions, LayerNorm at 5 per element, and the similarities
of the matching. Not counted: biases, activations, softmax, sums, rotary tables, resizing of position embeddings (a
product of matrices in SigLIP 2 since transformers 5.24), the fusion itself, text towers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..adapters.encoders.families.dims import EncoderShape, encoder_shape
from ..config import MergeConfig
from ..merging.method import two_halves
from ..merging.methods import get_method

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NORM_FLOPS = 5
"""Multiply-adds of LayerNorm per element in fvcore, with which ToMe's authors counted."""

Tokens = Sequence[tuple[float, float]]
"""For each block, tokens into it and out of it; means over images may be fractions."""


@dataclass(frozen=True)
class BlockFlops:
    """Multiply-adds of one block, by part."""

    attention: float
    mlp: float
    norms: float
    similarity: float

    @property
    def total(self) -> float:
        """Return the multiply-adds of the block."""
        return self.attention + self.mlp + self.norms + self.similarity


@dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of an encoder: the patch embedding, each block, and the last norm with the head.

    Of one window, where the image is cut into several (`num_windows`).
    """

    patch: float
    blocks: tuple[BlockFlops, ...]
    head: float
    num_windows: int = 1

    @property
    def total(self) -> float:
        """Return all multiply-adds of an image."""
        return self.num_windows * (self.patch + sum(block.total for block in self.blocks) + self.head)

    @property
    def gflops(self) -> float:
        """Return all multiply-adds in units of 1e9, as the papers print them."""
        return self.total / 1e9


def gflops(model: PreTrainedConfig | EncoderShape, merge_config: MergeConfig | None = None) -> float:
    """Return the GFLOPs (multiply-adds) of an encoder, with merging where a `MergeConfig` is given.

    A config does not tell what the head reads, so that the last block counts whole (see `exact_last_block`); `report`
    counts what runs.

    Raises:
        ValueError: the model type is not known here, or the number of tokens depends on the images.
    """
    shape = model if isinstance(model, EncoderShape) else encoder_shape(model)
    if merge_config is None:
        return count_flops(shape, [(shape.num_tokens, shape.num_tokens)] * shape.num_layers, None).gflops
    return merged_flops(shape, planned_tokens(shape, merge_config), merge_config).gflops


def count_flops(
    shape: EncoderShape,
    tokens: Tokens,
    similarity_dim: int | None,
    *,
    pairs: Sequence[float] | None = None,
    attended: Sequence[float] | None = None,
    head_tokens: float | None = None,
    attending: bool = False,
    last_queries: int | None = None,
) -> FlopCount:
    """Count the multiply-adds of an encoder that merges between attention and MLP.

    Args:
        tokens: for each block, tokens into it and out of it.
        similarity_dim: the width of what the matching compares, or None where nothing is compared.
        pairs: for each block, how many pairs of tokens are compared; by default ToMe's, where a block loses tokens.
        attended: for each block, how many pairs of query and key attention computes among these tokens; by default
            all. Where it runs over all windows, each query meets the keys of every one.
        attending: whether a row of attention is computed besides, in each block that compares.
        last_queries: the leading tokens that the last block computes, where its others are not read.
        head_tokens: the tokens that the head sees, where they are not those out of the last block.

    Raises:
        ValueError: `tokens`, `pairs` or `attended` does not have one entry a block.
    """
    if pairs is None:
        pairs = [two_halves(before) if after < before else 0 for before, after in tokens]
    if attended is None:
        attended = [before**2 for before, _ in tokens]
    for name, values in {"tokens": tokens, "pairs": pairs, "attended": attended}.items():
        if len(values) != shape.num_layers:
            raise ValueError(f"`{name}` has {len(values)} entries, but the encoder has {shape.num_layers} blocks.")
    if shape.num_windows > 1:
        joined = [shape.num_windows if index in shape.joined_blocks else 1 for index in range(shape.num_layers)]
        attended = [count * windows for count, windows in zip(attended, joined)]
    blocks = [
        _block_flops(
            shape,
            before,
            after,
            attends,
            compared * (similarity_dim or 0) + (before * shape.hidden_size if attending and compared else 0),
        )
        for (before, after), attends, compared in zip(tokens, attended, pairs)
    ]
    if last_queries is not None and blocks:
        blocks[-1] = _last_block_flops(shape, tokens[-1][0], last_queries)
        head_tokens = last_queries
    if head_tokens is None:
        head_tokens = tokens[-1][1] if tokens else shape.num_tokens
    head = shape.head_flops + head_tokens * (shape.head_token_flops + NORM_FLOPS * shape.hidden_size)
    return FlopCount(shape.patch_flops, tuple(blocks), head, shape.num_windows)


def merged_flops(
    shape: EncoderShape,
    tokens: Tokens,
    merge_config: MergeConfig,
    *,
    packed: Tokens | None = None,
    attended: Sequence[float] | None = None,
    last_queries: int | None = None,
) -> FlopCount:
    """Count the multiply-adds of an encoder with merging, from planned or measured tokens of each block.

    Args:
        tokens: as in `count_flops`, with the padding that the matching is computed with.
        packed: the same, as norms, projections and MLPs are run on them, where padding is left out there.
        attended, last_queries: as in `count_flops`.
    """
    method, fields = get_method(merge_config.method), merge_config.match_fields()
    comparing = _comparing_blocks(shape, tokens, merge_config)
    pairs = [
        method.compared_pairs(before, after, shape.num_prefix_tokens, fields) if block in comparing else 0
        for block, (before, after) in enumerate(tokens)
    ]
    return count_flops(
        shape,
        tokens if packed is None else packed,
        similarity_dim(shape, merge_config),
        pairs=pairs,
        attended=attended,
        head_tokens=shape.num_tokens if merge_config.restore else None,
        attending=merge_config.protect_attended > 0,
        last_queries=last_queries,
    )


def similarity_dim(shape: EncoderShape, merge_config: MergeConfig) -> int:
    """Return the width of what the matching compares: one head's for averaged keys, else the full one."""
    of_heads = merge_config.choice("metric") in ("k", "q", "v")
    return shape.head_dim if of_heads and merge_config.choice("head_aggregation") == "mean" else shape.hidden_size


def planned_tokens(shape: EncoderShape, merge_config: MergeConfig) -> list[tuple[int, int]]:
    """Return the tokens into and out of each block, where the config alone decides them.

    Raises:
        ValueError: the images decide, as with MaMe's threshold.
    """
    method, fields = get_method(merge_config.method), merge_config.match_fields()
    schedule = merge_config.schedule(shape.num_layers)
    counts, num_tokens = [], shape.num_tokens
    for r, merges in zip(schedule, merge_config.merging_blocks(shape.num_layers)):
        after: int | None = num_tokens
        if merges:
            r = merge_config.tokens_to_merge(r, max(num_tokens - shape.num_prefix_tokens, 0))
            after = method.planned_tokens(num_tokens, shape.num_prefix_tokens, r, fields)
        if after is None:
            value = getattr(merge_config, method.search_field)
            raise ValueError(
                f"With {method.label or method.name}'s {method.search_field} ({value:g}) the number of tokens depends "
                "on the images. Run the model on some and read `hf_tome.report(model)`"
                + (", or set `keep_ratio`, which fixes the number." if "keep_ratio" in method.fields else ".")
            )
        counts.append((num_tokens, after))
        num_tokens = after
    return counts


def token_counts(num_tokens: int, num_prefix_tokens: int, schedule: Sequence[int]) -> list[tuple[int, int]]:
    """Return the tokens into and out of each block for r of each, cut to half of what may merge (ToMe, 3)."""
    counts = []
    for r in schedule:
        after = num_tokens - min(r, max(num_tokens - num_prefix_tokens, 0) // 2)
        counts.append((num_tokens, after))
        num_tokens = after
    return counts


def _comparing_blocks(shape: EncoderShape, tokens: Tokens, merge_config: MergeConfig) -> Collection[int]:
    if not get_method(merge_config.method).takes_r:  # it compares before it knows whether anything merges
        return merge_config.merging_layers(shape.num_layers)
    return {block for block, (before, after) in enumerate(tokens) if after < before}


def _block_flops(shape: EncoderShape, before: float, after: float, attended: float, similarity: float) -> BlockFlops:
    width = shape.hidden_size
    return BlockFlops(
        attention=4 * before * width**2 + 2 * attended * width,
        mlp=(3 if shape.gated_mlp else 2) * after * width * shape.intermediate_size,
        norms=NORM_FLOPS * (before + after) * width,
        similarity=similarity,
    )


def _last_block_flops(shape: EncoderShape, before: float, queries: int) -> BlockFlops:
    """Count a block whose keys and values are those of all tokens, and the rest that of its leading ones alone."""
    width = shape.hidden_size
    return BlockFlops(
        attention=2 * (before + queries) * width**2 + 2 * queries * before * width,
        mlp=(3 if shape.gated_mlp else 2) * queries * width * shape.intermediate_size,
        norms=NORM_FLOPS * (before + queries) * width,
        similarity=0,
    )

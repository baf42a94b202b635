"""Merge projected image tokens, between projector and language model, whatever tower they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...merging import MatchInputs
from ..encoders.carry import ForwardState, projected_state

if TYPE_CHECKING:
    from ...patching.plans import Target
    from .plan_projected import ProjectedPlan


@dataclass(frozen=True)
class MergedImage:
    """The tokens of one image or tile: (M, C) after merging, how many each stands for, the places (M,) that they keep.

    `source` (N,) says where the tokens went.
    """

    tokens: Tensor
    size: Tensor
    place: Tensor
    source: Tensor


def merge_features(
    images: Sequence[Tensor], newline: Tensor | None, target: Target, width: int | None = None
) -> list[MergedImage]:
    """Merge the tokens (N_i, C) of each image by themselves, and record it as one pass.

    Merged tokens are means weighted by size, in the order of the places that they keep. Tokens that are equal to
    `newline` (C,) end the rows of an image; they are not merged. Similarity goes by the first `width` channels.
    """
    ends = [_line_ends(rows, newline) for rows in images]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (rows, end) in enumerate(zip(images, ends)):
        groups.setdefault((len(rows), 0 if end is None else int(end.sum())), []).append(index)
    merged: dict[int, MergedImage] = {}
    for (_, num_prefix), members in groups.items():
        x = torch.stack([images[index] for index in members])  # (G, N, C)
        order = torch.arange(x.shape[1], device=x.device).expand(len(members), -1)
        if num_prefix:  # the methods protect leading tokens, so line ends go to the front
            stacked = torch.stack([end for index in members if (end := ends[index]) is not None])
            order = (~stacked).int().argsort(dim=1, stable=True)
        merged.update(zip(members, _merge_group(x, order, num_prefix, target.plan, width)))
    results = [merged[index] for index in range(len(images))]
    keep_state = target.config.trace
    target.recorder.end(_state(results, keep_state).summary(keep_state))
    return results


def _line_ends(rows: Tensor, newline: Tensor | None) -> Tensor | None:
    return None if newline is None else (rows == newline.to(rows)).all(dim=-1)


def _merge_group(
    x: Tensor, order: Tensor, num_prefix: int, plan: ProjectedPlan, width: int | None
) -> Iterator[MergedImage]:
    """Merge tokens (G, N, C) of images of one length, of which the first `num_prefix` of `order` (G, N) stay."""
    config, num_tokens, size = plan.config, x.shape[1], None
    left = config.requested_tokens(plan.schedule[0], num_tokens - num_prefix)
    x = x.gather(1, order[..., None].expand_as(x))
    place = order  # of each token in the image, (G, M)
    held_by = torch.arange(num_tokens, device=x.device).expand_as(order)  # the row that holds each of `order`, (G, N)
    for step in range(num_tokens):
        r = min(left, (x.shape[1] - num_prefix) // 2)  # a round halves what may merge, at most
        if step and (r == 0 or not plan.method.takes_r):
            break
        inputs = MatchInputs(
            metric=x[..., :width],
            r=r,
            num_prefix_tokens=num_prefix,
            seed=config.seed * num_tokens + step,
            fields=config.match_fields(plan.method),
        )
        match = plan.method(inputs)
        x, size = match.merge(x, size)
        place = place.gather(1, match.representative)
        held_by = torch.where(held_by >= 0, match.source.gather(1, held_by.clamp(min=0)), -1)
        left -= r
    size = x.new_ones((*x.shape[:2], 1)) if size is None else size
    # Back into the image's own order; padding, of size 0, goes to the end.
    rows = place.masked_fill(size[..., 0] == 0, num_tokens).argsort(dim=1, stable=True)
    held_by = torch.where(held_by >= 0, rows.argsort(dim=1).gather(1, held_by.clamp(min=0)), -1)
    source = torch.empty_like(held_by).scatter(1, order, held_by)
    for index in range(len(x)):
        real = rows[index, size[index, rows[index], 0] > 0]
        yield MergedImage(x[index, real], size[index, real], place[index, real], source[index])


def _state(images: Sequence[MergedImage], trace: bool) -> ForwardState:
    """Write down the merge as that of one block, in which shorter images are padded with tokens of size 0."""
    ones = [image.source.new_ones((len(image.source), 1), dtype=torch.float32) for image in images]
    sizes = [pad_sequence(rows, batch_first=True) for rows in (ones, [image.size for image in images])]
    source = pad_sequence([image.source for image in images], batch_first=True, padding_value=-1) if trace else None
    return projected_state([size.shape[1] for size in sizes], sizes, source, len(images))

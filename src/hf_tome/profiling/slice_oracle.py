"""The slice oracle: the same blocks on tokens cut plainly to the same schedule, the limit of what merging can gain.

Its outputs mean nothing. It does no matching, keeps no sizes and adds nothing to the attention logits, so no way of
merging to this schedule can be faster, and the distance to it is what merging itself costs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..api import plan_targets, remove, replace_targets
from ..config import MergeConfig
from ..config.places import PLACES
from ..merging import MatchInputs, Merge, Method
from ..patching.plans import Target

ModelT = TypeVar("ModelT", bound=nn.Module)


class TokenSlice(Merge):
    """Keep the first M of N tokens; sizes are kept only where they mark padding."""

    def __init__(self, num_input: int, num_output: int, batch_size: int, device: torch.device):
        self.num_input, self.num_output = num_input, num_output
        self._kept = torch.arange(num_output, device=device).expand(batch_size, -1)

    def merge(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cut tokens (B, N, C) to (B, M, C); without sizes attention and heads stay as they are."""
        kept_size = None if size is None else size[:, : self.num_output]
        return x[:, : self.num_output], kept_size  # type: ignore[return-value]

    def unmerge(self, x: Tensor) -> Tensor:
        """Fill up with zeros, (B, M, C) -> (B, N, C)."""
        return nn.functional.pad(x, (0, 0, 0, self.num_input - self.num_output))

    @property
    def source(self) -> Tensor:
        """Where each input token went (see the base class)."""
        return nn.functional.pad(self._kept, (0, self.num_input - self.num_output), value=-1)

    @property
    def representative(self) -> Tensor:
        """The input token that each output token is (see the base class)."""
        return self._kept


def _slice(inputs: MatchInputs) -> Merge:
    batch_size, num_tokens = inputs.metric.shape[:2]
    return TokenSlice(num_tokens, num_tokens - inputs.r, batch_size, inputs.metric.device)


SLICE = Method("slice", _slice, metric="x", proportional=False, drops_tokens=True)


def make_oracle(
    model: ModelT,
    tokens: Sequence[Sequence[float]],
    where: str = "auto",
    *,
    restore: bool = False,
    exact_last_block: bool = True,
) -> ModelT:
    """Turn a model, in place, into the oracle of a schedule; returns the same object.

    Args:
        model: an unmerged transformers model.
        tokens: for each tower, the tokens into each block and, last, those out of the last one.
        where: the place where they are cut, as in `MergeConfig`.
        restore, exact_last_block: as in the `MergeConfig` of the model that it is compared with.
    """
    # The config only makes every block a merging one; what it does is set below.
    fields: dict[str, Any] = {
        "proportional_attention": False,
        "restore": restore,
        "exact_last_block": exact_last_block,
    }
    fields = {name: value for name, value in fields.items() if name not in PLACES[where].omits}
    planned = plan_targets(model, MergeConfig(r=1, where=where, **fields))
    return replace_targets(model, [_sliced(target, counts) for target, counts in zip(planned, tokens)])


def make_exact(model: ModelT) -> ModelT | None:
    """Let a model, in place, compute of its last blocks what is read alone, and merge nothing (`exact_last_block`).

    Returns:
        The same object; `None`, with the model as it was, where all of the last block is read.
    """
    planned = plan_targets(model, MergeConfig(r=1))
    if all(getattr(target.plan, "last_queries", None) is None for target in planned):
        return None
    return replace_targets(model, [_sliced(target, [0] * (len(target.plan.merging) + 1)) for target in planned])


def _sliced(target: Target, tokens: Sequence[float]) -> Target:
    group_size = target.describe().group_size
    counts = [round(count / group_size) for count in tokens]
    schedule = tuple(before - after for before, after in pairwise(counts))
    merging = tuple(cut > 0 for cut in schedule)
    return replace(target, plan=replace(target.plan, method=SLICE, schedule=schedule, merging=merging))


def shallow_copy(model: ModelT) -> ModelT:
    """Return an unmerged copy of a model's modules around the same parameters and buffers: it costs no memory."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return remove(copy.deepcopy(model, shared))

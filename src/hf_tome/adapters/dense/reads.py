"""Hidden states that a model reads on the full grid, unmerged one by one while later blocks keep merging."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...merging.base import HardMerge, Merge
from ...merging.indexing import take
from ...patching.patch import context_of
from ..encoders.carry import ForwardState
from ..encoders.outputs import SizeReader, final_tokens


class UnmergedReads(SizeReader):
    """A module around the blocks: in its output `last_hidden_state` and the hidden states that are read are unmerged.

    Other hidden states have the tokens that were left there.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, and unmerge what is read of its output: tokens (B, M, C) to (B, N, C)."""
        out = super().forward(*args, **kwargs)
        state = final_tokens(self).state
        if state is None or not any(state.merged):
            return out
        num_layers = state.num_layers
        entries: dict[str | int, tuple[int, Tensor]] = {"last": (num_layers, out.last_hidden_state)}
        hidden_states = getattr(out, "hidden_states", None)
        if hidden_states is not None:
            # The last one is what `last_hidden_state` of some backbones is made of.
            reads = {*self._reads(), num_layers}
            entries |= {i: (i, x) for i, x in enumerate(hidden_states) if i in reads and x is not None}
        unmerged = dict(zip(entries, unmerge_each(state, list(entries.values()))))
        out.last_hidden_state = unmerged["last"]
        if hidden_states is not None:
            out.hidden_states = tuple(unmerged.get(i, x) for i, x in enumerate(hidden_states))
        return out

    def _reads(self) -> Iterable[int]:
        return context_of(self).target.plan.reads


class UnmergedOutputs(UnmergedReads):
    """The same for a model that itself gives out a tuple where it is asked to (`return_dict=False`)."""

    config: Any

    def forward(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """See the base class."""
        out = super().forward(*args, return_dict=True, **kwargs)
        return out if (self.config.return_dict if return_dict is None else return_dict) else out.to_tuple()


class UnmergedFeatures(UnmergedReads):
    """The same in a backbone, whose `out_features` may change from call to call."""

    config: Any

    def _reads(self) -> Iterable[int]:
        return out_indices(self, context_of(self).target.plan.num_layers)


def out_indices(owner: Any, num_blocks: int) -> tuple[int, ...]:
    """Return the hidden states that a backbone reads (0 = embeddings)."""
    config = owner.config
    return tuple(i for i, stage in enumerate(config.stage_names) if stage in config.out_features)


def unmerge_each(state: ForwardState, entries: Sequence[tuple[int, Tensor]]) -> list[Tensor]:
    """Unmerge tokens (B, M, C) of several places in one pass, each given as the block that it goes into and tokens."""
    by_place: dict[int, tuple[list[Merge], Tensor | None]] = {}
    matches: list[Merge] = []
    source: Tensor | None = None  # (B, N): where each input token is by now, while all merges are hard
    wanted = {place for place, _ in entries}
    last = entries[-1][1] if entries else None
    for place in range(state.num_layers + 1):
        match = state.match_for(place - 1, last) if place and last is not None else None
        if match is not None:
            matches = [*matches, match]
            source = _followed(source, matches)
        if place in wanted:
            by_place[place] = matches, source
    return [_unmerged(tokens, *by_place[place]) for place, tokens in entries]


def _followed(source: Tensor | None, matches: list[Merge]) -> Tensor | None:
    match = matches[-1]
    if not isinstance(match, HardMerge) or (source is None and len(matches) > 1):
        return None
    step = match.source
    if source is None:
        return step
    step = step.to(source.device)
    return torch.where(source >= 0, step.gather(1, source.clamp(min=0)), -1)


def _unmerged(tokens: Tensor, matches: list[Merge], source: Tensor | None) -> Tensor:
    if source is None:
        for match in reversed(matches):
            tokens = match.to(tokens.device).unmerge(tokens)
        return tokens
    source = source.to(tokens.device)
    unmerged = take(tokens, source.clamp(min=0))
    if any(isinstance(match, HardMerge) and match.padding is not None for match in matches):
        unmerged = unmerged.masked_fill((source < 0)[..., None], 0)
    return unmerged

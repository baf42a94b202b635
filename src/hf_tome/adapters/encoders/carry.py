"""What the blocks of an encoder carry on to each other in a forward pass: sizes, positions, where tokens went."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...patching.recorder import PassSummary
from .packing import PADDED, PaddedLayout

if TYPE_CHECKING:
    from ...merging import Merge
    from ...patching.plans import Target
    from .plan import EncoderPlan


class ForwardState:
    """One forward pass through one tower.

    Block i reads entry i of each list and writes entry i + 1, so that a block that is run again by gradient
    checkpointing finds what it found the first time, and gives the same. It is handed from block to block as an
    argument, never shared between passes.

    Attributes:
        size: (B, N_i, 1) going into block i, 0 for padding; `None` while nothing has merged and nothing is padded.
        coherence: (B, N_i), how coherent the members of each token are (`HardMerge.merge_keeping_norm`); `None` where
            nothing has merged so.
        position: (B, N_i) int64, the input position that each token keeps; `None` while nothing has merged, or where
            no part of the model asks for it.
        source: (B, N_0) int64, the token that holds each input token going into block i; with `trace` only.
        match: the merge that block i did; kept where tokens are unmerged, with `trace`, and with several `reads` only.
            Behind the block, read it through `match_for`, through which gradients reach its weights.
        tokens: the number of tokens going into block i, padding included.
        merged: whether a merge has happened before block i.
        padded: whether there may be padding among the tokens going into block i.
        layout: layout (padded or packed) of block i's input for token-wise layers.
        batch_size, device: of the tokens going into the first block.
        unmerged: whether the last block gave the full grid back.
        next_block: the block whose turn it is.
        last_queries: how many leading tokens the last block computes, where its others are not read; else `None`.
        reads: indices of the hidden states used downstream (0 = embeddings); later blocks are skipped. `None` where
            that is not known, so that all blocks run.
    """

    def __init__(self, num_layers: int, reads: tuple[int, ...] | None = None):
        self.num_layers = num_layers
        self.size: list[Tensor | None] = [None] * (num_layers + 1)
        self.coherence: list[Tensor | None] = [None] * (num_layers + 1)
        self.position: list[Tensor | None] = [None] * (num_layers + 1)
        self.source: list[Tensor | None] = [None] * (num_layers + 1)
        self.match: list[Merge | None] = [None] * num_layers
        self._without_graph = [False] * num_layers  # which of them were made while gradients were off
        self._weight_grads: dict[int, Tensor] = {}  # by block, what later modules have sent back to its merge
        self.tokens: list[int] = [0] * (num_layers + 1)
        self.merged: list[bool] = [False] * (num_layers + 1)
        self.padded: list[bool] = [False] * (num_layers + 1)
        self.layout: list[PaddedLayout] = [PADDED] * (num_layers + 1)
        self.batch_size, self.device = 0, torch.device("cpu")
        self.unmerged = False
        self.next_block = 0
        self.last_queries: int | None = None
        self.reads = reads

    def is_needed(self, index: int) -> bool:
        """Return whether the output of block `index` is used."""
        return self.reads is None or index < max(self.reads)

    def enter(self, hidden_states: Tensor, size: Tensor | None) -> None:
        """Begin with tokens (B, N, C), and sizes (B, N, 1) where some of them are padding."""
        self.batch_size, self.device = hidden_states.shape[0], hidden_states.device
        self.tokens[0], self.size[0], self.padded[0] = hidden_states.shape[1], size, size is not None

    def bring(self, index: int, device: torch.device) -> None:
        """Move what block `index` reads to its device, where a model is spread over several."""
        for entries in (self.size, self.coherence, self.position, self.source):
            entry = entries[index]
            if entry is not None and entry.device != device:
                entries[index] = entry.to(device)
        self.layout[index] = self.layout[index].to(device)

    def leave(
        self, index: int, hidden_states: Tensor, size: Tensor | None, match: Merge | None, plan: EncoderPlan
    ) -> Tensor:
        """Record the output of block `index`: its tokens (B, M, C), their sizes, and the merge it did, if any.

        Returns the tokens, with whose gradient that of the merge's weights comes back where nothing else brings it.
        """
        self.size[index + 1], self.tokens[index + 1] = size, hidden_states.shape[1]
        position, source = self.position[index], self.source[index]
        if match is None:
            self.merged[index + 1], self.padded[index + 1] = self.merged[index], self.padded[index]
        else:
            self.merged[index + 1], self.padded[index + 1] = True, match.may_pad(self.padded[index])
            if plan.follows_position:
                kept = match.representative
                position = kept if position is None else position.gather(1, kept)
            if plan.config.trace:
                source = match.source if source is None else _follow(source, match.source)
            if plan.keeps_matches or (self.reads is not None and len(self.reads) > 1):
                self.match[index], self._without_graph[index] = match, not torch.is_grad_enabled()
            grad = self._weight_grads.pop(index, None)
            if grad is not None:
                hidden_states = _BringGrad.apply(hidden_states, match.weights_of_grad(), grad)
        self.position[index + 1], self.source[index + 1] = position, source
        return hidden_states

    def match_for(self, index: int, tokens: Tensor) -> Merge | None:
        """Return the merge of block `index` to use on later tokens (B, M, C), on their device.

        Reentrant checkpointing runs the block without gradients first, so that its merge's weights are constants. The
        gradient that they get is kept, and brought back when the block is run again (`leave`).
        """
        match = self.match[index]
        if match is None:
            return None
        if self._without_graph[index] and torch.is_grad_enabled() and tokens.requires_grad:
            match = match.detach()
            weights = match.weights_of_grad()
            if weights is not None:
                weights.requires_grad_().register_hook(partial(self._keep_grad, index))
        return match.to(tokens.device)

    def _keep_grad(self, index: int, grad: Tensor) -> None:
        before = self._weight_grads.get(index)
        self._weight_grads[index] = grad if before is None else before + grad

    def leave_last(self, index: int, num_tokens: int, plan: EncoderPlan) -> None:
        """Write down that the last block computed its leading tokens alone, where `num_tokens` would have come out."""
        fewer = num_tokens < self.tokens[index]
        self.tokens[index + 1] = num_tokens
        self.size[index + 1] = None if fewer else self.size[index]
        self.merged[index + 1], self.padded[index + 1] = self.merged[index], self.padded[index] and not fewer

    def final(self, with_state: bool) -> FinalTokens:
        """Return what is read behind the blocks."""
        size = self.size[-1] if self.merged[-1] and not self.unmerged else None
        return FinalTokens(size, self.padded[-1], self if with_state else None)

    def summary(self, keep_state: bool) -> PassSummary:
        """Return what is left to `report` of the pass, and to `trace` where it keeps the state."""
        real = [
            (size[..., 0] > 0).sum(dim=1) if padded and size is not None else None
            for size, padded in zip(self.size, self.padded)
        ]
        computed = [layout.computed(count) for layout, count in zip(self.layout, self.tokens)]
        blocks_run = self.num_layers if not self.reads else min(max(self.reads), self.num_layers)
        if keep_state:  # for `trace`, which needs no graph
            self.match = [None if match is None else match.detach() for match in self.match]
        return PassSummary(
            list(self.tokens), real, computed, blocks_run, self if keep_state else None, self.last_queries
        )


class _BringGrad(torch.autograd.Function):
    """Tokens unchanged, behind whose backward a tensor receives a gradient that is known already."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weights: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return tokens.view_as(tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], ctx.saved_tensors[0], None


class FinalTokens:
    """What is read behind the last block.

    Attributes:
        size: (B, M, 1), `None` where all are 1.
        padded: whether some of the tokens are padding.
        state: the whole pass, for models that read hidden states of several blocks.
    """

    def __init__(self, size: Tensor | None, padded: bool, state: ForwardState | None = None):
        self.size, self.padded, self.state = size, padded, state

    def size_on(self, device: torch.device) -> Tensor | None:
        """Return the sizes on a device, which need not be that of the last block."""
        return None if self.size is None else self.size.to(device)


NOTHING_MERGED = FinalTokens(None, False)


def stale(target: Target, reason: str) -> RuntimeError:
    """Return the error for a model whose blocks are not those that were planned for."""
    return RuntimeError(
        f"The blocks of this {target.plan.family.tower} are not those that merging was planned for: {reason}. Call "
        "`hf_tome.apply(model, config)` again after every change to a model's layers, or `hf_tome.remove(model)`."
    )


def _follow(source: Tensor, step: Tensor) -> Tensor:
    """Compose two maps from token to token, (B, N) and (B, M) -> (B, N); -1 stays -1."""
    return torch.where(source >= 0, step.gather(1, source.clamp(min=0)), -1)


def projected_state(
    tokens: Sequence[int], sizes: Sequence[Tensor], source: Tensor | None, batch_size: int
) -> ForwardState:
    """Return the state of a pass with one merge, outside of any block."""
    state = ForwardState(1)
    state.tokens, state.size, state.batch_size = list(tokens), list(sizes), batch_size
    state.padded, state.merged[1], state.source[1] = [True, True], True, source
    state.device = sizes[0].device
    return state

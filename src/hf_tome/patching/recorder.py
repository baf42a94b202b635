"""What merging has to remember: per tower its plan, per forward pass the size of every block's tokens."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapters.encoders.packing import WHOLE, Whole

if TYPE_CHECKING:
    from ..adapters.encoders.family import Family, Head
    from ..config import MergeConfig
    from ..merging import Merge
    from ..merging.method import Method


class ForwardState:
    """One forward pass through one tower.

    Block i reads entry i of each list and writes entry i + 1, so that a block that is run again by gradient
    checkpointing finds what it found the first time, and gives the same. It is handed from block to block as an
    argument, never shared between passes.

    Attributes:
        size: (B, N_i, 1) going into block i, 0 for padding; `None` while nothing has merged and nothing is padded.
        position: (B, N_i) int64, the input position that each token keeps; `None` while nothing has merged, or where
            no part of the model asks for it.
        source: (B, N_0) int64, the token that holds each input token going into block i; with `trace` only.
        match: the merge that block i did; kept with `trace`, `restore` and several `reads` only.
        tokens: the number of tokens going into block i, padding included.
        merged: whether a merge has happened before block i.
        padded: whether there may be padding among the tokens going into block i.
        packing: how the tokens going into block i lie in what works token by token (see `packing`).
        restored: whether the last block gave the full grid back.
        compiled: whether a compiled graph began the pass; where that graph breaks, later blocks may run outside it.
        reads: the hidden states that are read, as numbers of the blocks that they go into; blocks after the last of
            them need not run. `None` where nobody said, so that all blocks run.
    """

    def __init__(self, num_layers: int, reads: tuple[int, ...] | None = None):
        self.size: list[Tensor | None] = [None] * (num_layers + 1)
        self.position: list[Tensor | None] = [None] * (num_layers + 1)
        self.source: list[Tensor | None] = [None] * (num_layers + 1)
        self.match: list[Merge | None] = [None] * num_layers
        self.tokens: list[int] = [0] * (num_layers + 1)
        self.merged: list[bool] = [False] * (num_layers + 1)
        self.padded: list[bool] = [False] * (num_layers + 1)
        self.packing: list[Whole] = [WHOLE] * (num_layers + 1)
        self.restored = self.compiled = False
        self.reads = reads

    def is_needed(self, index: int) -> bool:
        """Return whether anybody reads what block `index` gives out."""
        return self.reads is None or index < max(self.reads)

    def enter(self, hidden_states: Tensor, size: Tensor | None) -> None:
        """Begin with tokens (B, N, C), and sizes (B, N, 1) where some of them are padding."""
        self.tokens[0], self.size[0], self.padded[0] = hidden_states.shape[1], size, size is not None

    def bring(self, index: int, device: torch.device) -> None:
        """Move what block `index` reads to its device, where a model is spread over several."""
        for entries in (self.size, self.position, self.source):
            entry = entries[index]
            if entry is not None and entry.device != device:
                entries[index] = entry.to(device)
        self.packing[index] = self.packing[index].to(device)

    def leave(self, index: int, hidden_states: Tensor, size: Tensor | None, match: Merge | None, tower: Tower) -> None:
        """Write down what block `index` hands on: its tokens (B, M, C), their sizes, and the merge it did, if any."""
        self.size[index + 1], self.tokens[index + 1] = size, hidden_states.shape[1]
        position, source = self.position[index], self.source[index]
        if match is None:
            self.merged[index + 1], self.padded[index + 1] = self.merged[index], self.padded[index]
        else:
            self.merged[index + 1], self.padded[index + 1] = True, match.may_pad(self.padded[index])
            if tower.follows_position:
                kept = match.representative
                position = kept if position is None else position.gather(1, kept)
            if tower.config.trace:
                source = match.source if source is None else _follow(source, match.source)
            if tower.config.trace or tower.restore or (self.reads is not None and len(self.reads) > 1):
                # A constant: gradient checkpointing keeps no graph between blocks but that of their tokens.
                self.match[index] = match.detach()
        self.position[index + 1], self.source[index + 1] = position, source

    def final_size(self, device: torch.device | None = None) -> Tensor | None:
        """Return the sizes of the tokens that the head gets, (B, M, 1), or `None` where they are all 1.

        They come on `device`, where one is given, which need not be that of the last block.
        """
        size = self.size[-1] if self.merged[-1] and not self.restored else None
        return size if size is None or device is None else size.to(device)


def _follow(source: Tensor, step: Tensor) -> Tensor:
    """Compose two maps from token to token, (B, N) and (B, M) -> (B, N); -1 stays -1."""
    return torch.where(source >= 0, step.gather(1, source.clamp(min=0)), -1)


@dataclass
class Tower:
    """The plan for one encoder, shared by its blocks and heads.

    Attributes:
        family: the row.
        config: what to merge.
        method: the row of the config's method.
        schedule: tokens that each block is asked to merge, of those that may (see `num_layers`); for MaMe all 0.
        merging: whether each of them merges.
        num_special: leading tokens that are never merged.
        proportional: whether log(size) is added to the attention logits.
        restore: whether the full grid is given back after the last block.
        reads: the hidden states that a model around the tower reads, as numbers of the blocks that they go into;
            empty where it reads the tower's output.
        path: the tower's name in the model.
        heads: what is done with the tokens after the last block.
        last: the latest forward pass, for `report` and `trace`.
        num_swapped: how many modules have been swapped for it.
    """

    family: Family
    config: MergeConfig
    method: Method
    schedule: tuple[int, ...]
    merging: tuple[bool, ...]
    num_special: int
    proportional: bool
    restore: bool
    reads: tuple[int, ...] = ()
    path: str = ""
    heads: tuple[Head, ...] = ()
    last: ForwardState | None = None
    num_swapped: int = 0

    def __post_init__(self):
        self._threads = threading.local()

    @property
    def num_layers(self) -> int:
        """The number of blocks that may merge: all, or those before the place where the full grid is given back."""
        return len(self.merging)

    @property
    def follows_position(self) -> bool:
        """Whether some part of the model goes by the tokens' positions."""
        hands_on = bool(self.reads) and not self.restore  # language models take image tokens in order
        return self.family.rotary is not None or self.family.position_bias is not None or hands_on

    def begin(self) -> ForwardState:
        """Start a forward pass; called by the first block."""
        is_compiling = torch.compiler.is_compiling()  # graphs know no threads
        state = ForwardState(self.num_layers, None if is_compiling else getattr(self._threads, "reads", None))
        state.compiled = is_compiling
        self.last = state
        if not is_compiling:
            # Several threads may serve requests with one model; each follows its own pass, while `last` is whoever's.
            self._threads.state = state
        return state

    @contextmanager
    def reading(self, layers: Sequence[int], whole: bool = False) -> Iterator[None]:
        """Say which hidden states are read of the passes that this thread begins meanwhile (see `ForwardState`).

        With `whole`, all blocks run all the same.
        """
        self._threads.reads = (*layers, *([self.num_layers] if whole else []))
        try:
            yield
        finally:
            self._threads.reads = None

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Leave projected tokens alone that this thread makes meanwhile."""
        if torch.compiler.is_compiling():  # graphs know no threads; those compiled for decoding make no features
            yield
            return
        before, self._threads.resting = self.is_resting, True
        try:
            yield
        finally:
            self._threads.resting = before

    @property
    def is_resting(self) -> bool:
        """Whether this thread is within `resting`."""
        return getattr(self._threads, "resting", False)

    def current(self) -> ForwardState:
        """Return this thread's forward pass.

        Raises:
            RuntimeError: no pass has begun, because the first block did not run.
        """
        if torch.compiler.is_compiling() or (self.last is not None and self.last.compiled):
            state = self.last
        else:
            state = getattr(self._threads, "state", None)
        if state is None:
            raise RuntimeError(
                f"A block of {self.family.tower} ran before the first one; merging needs the blocks to run in order "
                "from block 0. Call `hf_tome.remove(model)` to run them one by one."
            )
        return state

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_threads", "last")}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self.last = None
        self._threads = threading.local()


@dataclass
class Link:
    """What a swapped module knows: its tower, and which block it is (-1 for heads).

    `modeling` names the Python module that an attention's own forward comes from.
    """

    tower: Tower
    index: int = -1
    modeling: str = ""

"""What a denoiser hands to its blocks in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .rows import Call, Grid


class DenoiserPass:
    """The pass that runs: its grid and its seed.

    Plain attributes, which a compiled block can read (it could not read those of a thread). So two threads must not
    run one denoiser at the same time, which schedulers do not allow either.

    Attributes:
        grid: of the latents; `None` outside of passes and in steps that do not merge, where blocks run as they are.
        seed: an int64 scalar that depends on the timestep (see `matching.step_seed`).
    """

    def __init__(self) -> None:
        self.grid: Grid | None = None
        self.seed: Any = None

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, values: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]


@dataclass(frozen=True)
class BlockShapes:
    """The shapes of one block's last pass, for counting; all tensors are on the meta device.

    Attributes:
        inputs, merged: the arguments that the block would have had without merging, and those that it had.
        grid_tokens: (B, N, C), the tokens that were matched.
        grid: their shape on the grid.
        num_left: how many tokens merging left.
        num_runs: how many times it ran, once an image where images run one by one.
    """

    inputs: dict[str, Any]
    merged: dict[str, Any]
    grid_tokens: tuple[int, ...]
    grid: tuple[int, ...]
    num_left: int
    num_runs: int


@dataclass(eq=False)
class BlockDetail:
    """What one patched block knows.

    Attributes:
        call: how it is called.
        kind: `"block"`, `"attention"` or `"kv"`.
        names: its arguments in order.
        state: the pass, shared by all blocks of a denoiser.
        path: its name in the denoiser.
        index: its number, an int64 scalar, so that all blocks of a class share one compiled graph.
        min_tokens: fewer tokens than this do not merge.
        proportional: whether keys get log(size).
        bias: log(size), while the block runs, for the attentions inside.
        tokens: of the last pass, the tokens into and out of its merge; `None` where it did not merge.
        seen: of the last pass, the tokens of its grid; `None` where it did not run.
        shapes: of the last pass that merged outside of a compiled graph.
    """

    call: Call
    kind: str
    names: tuple[str, ...]
    state: DenoiserPass
    path: str
    index: Tensor
    min_tokens: int
    proportional: bool
    bias: KeyBias | None = field(default=None, repr=False)
    tokens: tuple[int, int] | None = None
    seen: tuple[int, int] | None = None
    shapes: BlockShapes | None = field(default=None, repr=False)


@dataclass(eq=False)
class AttentionDetail:
    """What a self-attention inside a merged block knows: the block's detail, and its own arguments in order."""

    block: BlockDetail
    names: tuple[str, ...]


@dataclass(eq=False)
class DenoiserDetail:
    """What a patched denoiser knows: the pass, its blocks, and its arguments' shapes in the last pass."""

    state: DenoiserPass
    details: tuple[BlockDetail, ...]
    inputs: dict[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class KeyBias:
    """log(size) of merged tokens, and where they stand among the tokens of a block.

    Attributes:
        log_size: (B, M).
        start: tokens before them.
        length: tokens (B, N') of the block's argument, text in it included.
        text_first: whether text keys from elsewhere stand before these.
    """

    log_size: Tensor
    start: int
    length: int
    text_first: bool

    def over(self, num_keys: int) -> Tensor | None:
        """Return the bias (B, 1, 1, K) over `num_keys` keys, 0 for text; `None` if the tokens are not among them."""
        if num_keys < self.length:
            return None
        before = (num_keys - self.length if self.text_first else 0) + self.start
        behind = num_keys - before - self.log_size.shape[1]
        return torch.nn.functional.pad(self.log_size, (before, behind))[:, None, None]


def without_data(value: Any) -> Any:
    """Return arguments with tensors of the same shapes on the meta device."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, Mapping):
        return {name: without_data(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [without_data(part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value

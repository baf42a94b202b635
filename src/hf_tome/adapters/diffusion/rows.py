"""What a row of the table of denoisers says: where tokens are in a block's arguments, and what follows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Follow:
    """An argument of a block that has one entry per token, as rotary tables, masks and modulation have.

    Attributes:
        argument: its name.
        dim: the dimension of the tokens. An argument of size 1 there is broadcast, and left as it is.
        text_first: whether entries of text stand before those of the tokens; else they stand behind, if there are any.
        part: which entry of a tuple follows; all of them by default.
        ndim: the number of dimensions that it has where it goes by token; any by default.
        has_batch: whether dimension 0 is the batch (or 1). Where it is not, images run one by one.
    """

    argument: str
    dim: int
    text_first: bool = False
    part: int | None = None
    ndim: int | None = None
    has_batch: bool = True


@dataclass(frozen=True)
class Call:
    """How a block, or its self-attention, takes and returns tokens.

    Attributes:
        hidden: the argument that holds tokens (B, N, C).
        output: where they are in a tuple that is returned; `None` where they are the output.
        text_leads: whether the argument starts with text or registers, which never merge. What stands behind the grid
            (text, reference images, filling) never merges in any case.
        follows: the arguments that go by token.
        gives_change: whether each token gets back the change of its merged token, `h + unmerge(y - merge(h))`; else
            the output itself, as around an attention, whose residual stands outside.
        attentions: names of the self-attentions inside a block, whose keys get log(size); empty for an attention.
        text_keys_first: whether those attend to text keys that stand before the tokens'.
        bias: how log(size) gets there: the `"mask"` argument of diffusers' `Attention`, or a mask of the
            `"sdpa"` call inside.
    """

    hidden: str = "hidden_states"
    output: int | None = None
    text_leads: bool = False
    follows: tuple[Follow, ...] = ()
    gives_change: bool = True
    attentions: tuple[str, ...] = ()
    text_keys_first: bool = False
    bias: str = "sdpa"


@dataclass(frozen=True)
class BlockRow:
    """One class of blocks, and where in it tokens can merge.

    Attributes:
        name: class name of the block.
        block: how the whole block is called.
        attention: how its self-attentions are called; `None` where merging around them has no row.
        self_attentions: names of its self-attentions, for merging around them and in their keys.
        kv: whether keys and values alone can merge: a self-attention of diffusers' `Attention` without positions.
        unless: attributes of a block with which it cannot merge: name -> the reason.
    """

    name: str
    block: Call | None = None
    attention: Call | None = None
    self_attentions: tuple[str, ...] = ("attn1",)
    kv: bool = False
    unless: Mapping[str, str] = field(default_factory=dict)

    def modules(self) -> tuple[str, ...]:
        """Return the values of `MergeConfig.modules` that it takes, the default one first."""
        takes = {"attention": self.attention is not None, "block": self.block is not None, "kv": self.kv}
        return tuple(name for name, is_taken in takes.items() if is_taken)


@dataclass(frozen=True)
class Grid:
    """The tokens of an image or a video as a denoiser's blocks see them.

    Attributes:
        shape: (height, width), or (frames, height, width).
        stream: how many tokens the image's stream has, those of reference images behind the grid included.
        halves: whether deeper levels have the shape halved, rounded up (UNets).
    """

    shape: tuple[int, ...]
    stream: int
    halves: bool = False

    def at(self, num_tokens: int) -> tuple[int, ...] | None:
        """Return the shape at the level that has so many tokens, or `None` where no level has."""
        shape = self.shape
        while self.halves and math.prod(shape) > num_tokens and shape != (1, 1):
            shape = (-(-shape[0] // 2), -(-shape[1] // 2))
        return shape if math.prod(shape) == num_tokens or not self.halves else None


@dataclass(frozen=True)
class DenoiserRow:
    """One class of denoisers.

    Attributes:
        name: class name of the model.
        blocks: the rows of its blocks.
        grid: from the model and its arguments by name to the grid of its tokens.
        path: a regular expression that the path of a block matches; blocks elsewhere (refiners of text, temporal
            blocks) stay as they are.
        timestep: the argument that holds the timestep.
        timesteps: its values in the first and behind the last step.
    """

    name: str
    blocks: tuple[BlockRow, ...]
    grid: Callable[[Any, Mapping[str, Any]], Grid]
    path: str = ""
    timestep: str = "timestep"
    timesteps: tuple[float, float] = (1000.0, 0.0)

"""What an adapter decides for one place in a model, before anything is touched; knows no model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import nn

from ..errors import UnsupportedModelError
from .patch import is_forward_kept, is_patched, mixin_of, own_class, patch

if TYPE_CHECKING:
    from ..config import MergeConfig
    from .recorder import PassSummary, Recorder

NEXT_STEPS = (
    "See docs/models.md for what is supported; a plain encoder inside a model of your own can be merged by itself, "
    "as in `hf_tome.apply(model.encoder, config)`."
)


@dataclass(frozen=True)
class Level:
    """Blocks that work on as many tokens, each of which merges some and unmerges all of them.

    Attributes:
        num_blocks: how many blocks.
        before, after: tokens into and out of the merge; the same where these blocks do not merge.
    """

    num_blocks: int
    before: int
    after: int


@dataclass(frozen=True)
class CachedEntries:
    """What a layer's cache holds after a call.

    Attributes:
        seen, stored: tokens seen, and entries that are left of them; padding counts.
        bytes_seen, bytes_stored: what keys and values of all tokens would take, and what is stored takes in all.
    """

    seen: int
    stored: int
    bytes_seen: int
    bytes_stored: int


@dataclass(frozen=True)
class Description:
    """What `report` tells of a target, whatever its adapter.

    Attributes:
        tower: class name of the module whose tokens merge.
        backend: its attention implementation, empty where attention has no part in merging.
        proportional_attention: whether log(size) is added to the attention logits.
        num_prefix_tokens: leading tokens that are never merged.
        outputs: what is done with the merged tokens, in words.
        schedule: the tokens that each block is asked to merge, 0 where the inputs decide.
        merging: whether each block merges.
        blocks_run: how many of the blocks run, where the rest is not read by anything.
        unmerged: whether all tokens are unmerged after the last of these blocks.
        last_queries: how many leading tokens the last block computes, where its others are not read by anything.
        notes: what else the user should know.
        levels: where every block unmerges its tokens, what the last pass did by number of tokens, largest first; no
            entry before any pass. `None` where merged tokens are carried from block to block.
        cached: where the entries of a cache merge, what that of each layer holds, by number of the layer; empty
            before any call. `None` elsewhere.
        group_size: how many tokens merge as one, so that the schedule counts groups of so many.
    """

    tower: str
    schedule: tuple[int, ...]
    merging: tuple[bool, ...]
    blocks_run: int
    backend: str = ""
    proportional_attention: bool = False
    num_prefix_tokens: int = 0
    outputs: tuple[str, ...] = ()
    unmerged: bool = False
    notes: tuple[str, ...] = ()
    levels: tuple[Level, ...] | None = None
    last_queries: int | None = None
    cached: Mapping[int, CachedEntries] | None = None
    group_size: int = 1


@dataclass(frozen=True)
class Plan:
    """An adapter's decisions for one target: frozen data. Adapters subclass it with what their mixins read."""

    config: MergeConfig

    def describe(self, module: Any, summary: PassSummary | None) -> Description:
        """Return what `report` tells of the target, after the pass of `summary` or before any."""
        raise NotImplementedError

    def shape(self, module: Any) -> Any:
        """Return the `EncoderShape` by which `report` counts GFLOPs, or `None`; see also `gflops`."""
        return None

    def gflops(self, module: Any, summary: PassSummary | None) -> tuple[float, float] | None:
        """Return GFLOPs an input with merging and without, where the adapter counts by itself; else `None`."""
        return None


@dataclass(frozen=True)
class Patch:
    """One module to be patched.

    Attributes:
        module: whose class changes.
        mixin: a subclass of `PatchedModule` or `PatchedModel`.
        index: which block of the target it belongs to, -1 for what is no block.
        detail: what the mixin has to know besides; it is found in the context.
    """

    module: nn.Module
    mixin: type
    index: int = -1
    detail: Any = None


PlanT = TypeVar("PlanT", bound=Plan)


@dataclass(frozen=True, eq=False)
class Target(Generic[PlanT]):
    """One place in a model where tokens merge: what is planned, what is patched for it, and its recorder.

    Attributes:
        path: name of the module whose tokens merge, in the model that `apply` was called on.
        module: that module.
        plan: the adapter's decisions.
        recorder: the forward passes.
        patches: what is to be patched; empty once it is, so that modules do not refer to each other.
        num_patches, num_around: how many modules were patched for it, and how many of them are not inside `module`.
    """

    path: str
    module: Any
    plan: PlanT
    recorder: Recorder
    patches: tuple[Patch, ...] = field(default=(), repr=False)
    num_patches: int = 0
    num_around: int = 0

    @property
    def config(self) -> MergeConfig:
        """What is merged."""
        return self.plan.config

    def describe(self) -> Description:
        """Return what `report` tells of it."""
        return self.plan.describe(self.module, self.recorder.summary)


@dataclass(frozen=True, eq=False)
class MergeContext:
    """What a patched module reads: its target, which block of it it is (-1 for others), and the patch's detail."""

    target: Target[Any]
    index: int = -1
    detail: Any = None


def attach(target: Target) -> None:
    """Patch the modules of a target; those that an earlier target has patched the same way are left to it."""
    patches = [change for change in target.patches if mixin_of(change.module) is not change.mixin]
    inside = set(map(id, target.module.modules()))
    around = sum(id(change.module) not in inside for change in patches)
    attached = replace(target, patches=(), num_patches=len(patches), num_around=around)
    for change in patches:
        patch(change.module, change.mixin, MergeContext(attached, change.index, change.detail))


def check_patches(targets: Iterable[Target]) -> None:
    """Raise where two targets want to patch one module in different ways.

    Raises:
        UnsupportedModelError: it names the module and both ways.
    """
    mixins: dict[int, type] = {}
    for change in (change for target in targets for change in target.patches):
        other = mixins.setdefault(id(change.module), change.mixin)
        if other is not change.mixin:
            raise UnsupportedModelError(
                f"A {type(change.module).__name__} would have to be patched both as {other.__name__} and as "
                f"{change.mixin.__name__}; merge in one place at a time."
            )


def check_forwards(modules: Sequence[nn.Module]) -> None:
    """Raise where an instance has a forward of its own, which would run instead of ours, silently.

    That of accelerate's and diffusers' hooks is none: it runs the module's, which is patched in it as well.
    """
    for module in modules:
        if not is_forward_kept(module):
            raise UnsupportedModelError(
                f"The forward of a {type(module).__name__} has been replaced on the instance, so merging in it would "
                "do nothing. Call `hf_tome.apply` first, and wrap the model after it."
            )


def check_blocks(blocks: Sequence[nn.Module], library: str) -> None:
    """Raise where blocks, or attentions, are used twice, or not the library's, for whose forwards ours stand in."""
    for module in blocks:
        origin = forward_module(module)
        if not f"{origin}.".startswith(f"{library}."):
            raise UnsupportedModelError(
                f"The forward of a {type(module).__name__} is defined in {origin}, not in {library}, and merging "
                f"would run {library}'s in its place. Supported are blocks as {library} defines them."
            )
    if len(set(map(id, blocks))) < len(blocks):
        raise UnsupportedModelError(
            f"The same {type(blocks[0]).__name__} is used in several layers, and each layer's merging has to remember "
            "its own tokens. Give every layer a block of its own, as `copy.deepcopy` makes it; weights may be shared."
        )


def forward_module(module: nn.Module) -> str:
    """Return the name of the Python module in which the forward of a module's own class is defined."""
    return inspect.unwrap(own_class(module).forward).__module__


def patched_inside(entry: nn.Module, mixin: type) -> nn.Module | None:
    """Return the module patched with `mixin` that `entry` is, or wraps (as FSDP and `torch.compile` do)."""
    if isinstance(entry, mixin):
        return entry
    return next((module for module in entry.modules() if is_patched(module) and isinstance(module, mixin)), None)

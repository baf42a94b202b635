"""Plans merging in one denoiser: which blocks, in which way; nothing is changed here."""

from __future__ import annotations

import inspect
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...config import MergeConfig
from ...errors import UnsupportedModelError
from ...merging.methods import METHODS, get_method
from ...patching.patch import context_of, is_patched, own_class
from ...patching.plans import Description, Level, Patch, Plan, Target, check_blocks, check_forwards
from ...patching.recorder import PassSummary, Recorder
from .composition import register_for_caches
from .flops import count_denoiser
from .local import BiasedAttention, MergedBlock, MergedDenoiser
from .rows import BlockRow, Call, DenoiserRow
from .state import AttentionDetail, BlockDetail, DenoiserDetail, DenoiserPass

logger = logging.getLogger(__name__)

AROUND = {"attention": "around self-attention", "block": "around whole blocks", "kv": "in keys and values alone"}


@dataclass(frozen=True)
class DenoiserPlan(Plan):
    """What merging does in one denoiser.

    Attributes:
        row: the denoiser's row.
        names: the arguments of its forward, in order.
        modules: what merging is put around: `"attention"`, `"block"` or `"kv"`.
        proportional: whether keys get log(size).
        num_blocks: blocks that may merge.
    """

    row: DenoiserRow
    names: tuple[str, ...]
    modules: str
    proportional: bool
    num_blocks: int

    def describe(self, module: Any, summary: PassSummary | None) -> Description:
        """Return what `report` tells, level by level once the denoiser has run."""
        details = context_of(module).detail.details if is_patched(module) else ()
        notes = [
            f"{self.num_blocks} blocks merge {AROUND[self.modules]}, where they have {self.config.min_tokens} tokens"
        ]
        if self.config.steps is not None:
            begin, end = self.config.steps
            notes.append(f"in the steps from {begin:.0%} to {end:.0%} of the schedule; elsewhere nothing merges")
        return Description(
            tower=type(module).__name__,
            schedule=(),
            merging=(),
            blocks_run=0,
            proportional_attention=self.proportional,
            outputs=("all tokens are unmerged after each block; text and reference tokens never merge",),
            notes=tuple(notes),
            levels=_levels(details),
        )

    def gflops(self, module: Any, summary: PassSummary | None) -> tuple[float, float] | None:
        """Return GFLOPs an image of the last pass with merging and without, counted; `None` before any."""
        if summary is None or not is_patched(module):
            return None
        try:
            return count_denoiser(module, context_of(module).detail, self.config)
        except Exception as error:  # a forward that reads values cannot run without data; a report goes on
            logger.debug("The multiply-adds of a %s are not counted: %s", type(module).__name__, error)
            return None

    def is_active(self, timestep: Any) -> bool:
        """Return whether the step of a timestep merges."""
        if self.config.steps is None:
            return True
        first, last = self.row.timesteps
        value = float(timestep.reshape(-1)[0]) if isinstance(timestep, torch.Tensor) else float(timestep)
        share = (first - value) / (first - last)
        begin, end = self.config.steps
        return begin <= share < end or (end == 1 and share >= 1)

    def check_merged(self, module: Any, details: Sequence[BlockDetail]) -> None:
        """Raise where blocks ran, and none of them had tokens enough to merge.

        Raises:
            ValueError: it names the tokens that there were.
        """
        seen = [detail.seen[0] for detail in details if detail.seen is not None]
        if not seen or any(detail.tokens is not None for detail in details):
            return
        counts = ", ".join(f"{count:,}" for count in sorted(set(seen), reverse=True))
        raise ValueError(
            f"Nothing merged: the blocks of this {type(module).__name__} had {counts} tokens, and `min_tokens` is "
            f"{self.config.min_tokens:,}. Lower `min_tokens`, or make larger pictures."
        )


def _levels(details: Sequence[BlockDetail]) -> tuple[Level, ...]:
    """Return the blocks that ran, counted by their tokens into and out of the merge."""
    counts = Counter(detail.tokens or detail.seen for detail in details if detail.seen is not None)
    return tuple(
        Level(num_blocks, before, after)
        for (before, after), num_blocks in sorted(counts.items(), reverse=True)  # type: ignore[misc]
    )


def plan_denoiser(path: str, module: nn.Module, row: DenoiserRow, config: MergeConfig) -> Target:
    """Plan merging in one denoiser.

    Raises:
        UnsupportedModelError: its blocks cannot take merged tokens as the config asks.
        ValueError: the config does not fit, as a ratio that the cells do not allow.
    """
    check_config(config)
    blocks = list(_blocks(module, row))
    modules = _modules_of(module, row, config)
    numbers = config.merging_layers(len(blocks)) if config.layers is not None else range(len(blocks))
    chosen = [index for index in numbers if index % config.every == 0]
    proportional = config.weighs_attention(get_method(config.method).grid_proportional)
    state = DenoiserPass()
    details: list[BlockDetail] = []
    patches: list[Patch] = []
    for number in chosen if _merges(config) else ():
        block_path, block, block_row = blocks[number]
        for name, part, call in _parts(block, block_row, modules):
            detail = BlockDetail(
                call=call,
                kind=modules,
                names=argument_names(part),
                state=state,
                path=f"{block_path}.{name}" if name else block_path,
                index=torch.tensor(number),
                min_tokens=config.min_tokens,
                proportional=proportional,
            )
            details.append(detail)
            patches.append(Patch(part, MergedBlock, number, detail))
            if modules == "block" and proportional:
                inner = [getattr(block, attention, None) for attention in call.attentions]
                patches += [
                    Patch(attention, BiasedAttention, number, AttentionDetail(detail, argument_names(attention)))
                    for attention in inner
                    if attention is not None
                ]
    check_blocks([patch.module for patch in patches], "diffusers")
    check_forwards([patch.module for patch in patches])
    register_for_caches(patches)
    plan = DenoiserPlan(config, row, argument_names(module), modules, proportional, len(details))
    patches.append(Patch(module, MergedDenoiser, -1, DenoiserDetail(state, tuple(details))))
    return Target(path, module, plan, Recorder(), patches=tuple(patches))


def check_config(config: MergeConfig) -> None:
    """Raise where a config cannot merge in a denoiser.

    Raises:
        ValueError: the method has no form for grids, or the ratio leaves fewer tokens than there are cells.
    """
    method = get_method(config.method)
    if method.match_grid is None:
        supported = ", ".join(repr(name) for name, row in METHODS.items() if row.match_grid is not None)
        raise ValueError(f"`method` is {config.method!r}, which has no form for denoisers; supported are {supported}.")
    most = 1 - 1 / (config.stride[0] * config.stride[1])
    if config.ratio is not None and config.ratio > most:
        raise ValueError(
            f"`ratio` is {config.ratio:g}; with one destination in each cell of {config.stride[0]} x "
            f"{config.stride[1]} tokens at most {most:g} of the tokens can merge. Lower `ratio`, or widen `stride`."
        )


def _merges(config: MergeConfig) -> bool:
    return not get_method(config.method).takes_r or bool(config.ratio)


def _blocks(module: nn.Module, row: DenoiserRow) -> Iterator[tuple[str, nn.Module, BlockRow]]:
    rows = {block.name: block for block in row.blocks}
    for path, block in module.named_modules():
        block_row = rows.get(own_class(block).__name__)
        if block_row is None or (row.path and not re.fullmatch(row.path, path)):
            continue
        if not any(getattr(block, attribute, None) for attribute in block_row.unless):
            yield path, block, block_row


def _modules_of(module: nn.Module, row: DenoiserRow, config: MergeConfig) -> str:
    """Return what merging is put around: what the config says, else what all blocks take.

    Raises:
        UnsupportedModelError: there are no such blocks, or they do not take what the config says.
    """
    rows = [block_row for _, _, block_row in _blocks(module, row)]
    if not rows:
        reasons = "; ".join(
            f"a block that has `{name}` {reason}" for block in row.blocks for name, reason in block.unless.items()
        )
        raise UnsupportedModelError(
            f"{type(module).__name__} has no block in which tokens can merge{f' ({reasons})' if reasons else ''}."
        )
    taken = [name for name in rows[0].modules() if all(name in other.modules() for other in rows)]
    if config.modules == "auto":
        return taken[0]
    if config.modules not in taken:
        raise UnsupportedModelError(
            f"`modules` is {config.modules!r}, but in {type(module).__name__} merging is supported with "
            f"{' or '.join(map(repr, taken))} only."
        )
    return config.modules


def _parts(block: nn.Module, row: BlockRow, modules: str) -> Iterator[tuple[str, nn.Module, Call]]:
    """Yield what is patched of one block: its name in the block, the module, and how it is called."""
    if modules == "block":
        assert row.block is not None
        yield "", block, row.block
        return
    call = row.attention or Call(gives_change=False)
    for name in row.self_attentions:
        if getattr(block, name, None) is not None:
            yield name, getattr(block, name), call


def argument_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the positional arguments of a module's own forward."""
    parameters = list(inspect.signature(own_class(module).forward).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in positional)

"""Plan what merging does to each encoder in a model. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import transformers  # whose heavy classes are imported where they are used: importing hf_tome stays quick
from torch import nn

from ...config import MergeConfig
from ...errors import UnsupportedModelError
from ...merging.methods import METHODS, Method
from ...patching.plans import (
    NEXT_STEPS,
    Description,
    Patch,
    Plan,
    Target,
    check_blocks,
    check_forwards,
    forward_module,
)
from ...patching.recorder import PassSummary, Recorder
from .attention import MergedAttention, backend_of, check_backend
from .block import MergedBlock
from .families.dims import EncoderShape, family_shape, timm_shape
from .families.family import Family, OutputAdapter
from .families.registry import TOWERS
from .reasons import unknown_owner
from .timm import TIMM_TOWERS, TimmAttention, check_timm, is_timm

Wrappers = Mapping[str, tuple[OutputAdapter, ...] | str]
"""The output adapters of models around any tower, by class name; a string is the reason why it is not supported."""
Owned = tuple[nn.Module, OutputAdapter]
"""An output adapter with the model that has it."""

ATTENTIONS: dict[str, type] = {"timm": TimmAttention}
"""What an attention is patched with, by its library; `MergedAttention` for all that are not listed."""

AT_THE_END = "after the last block"
"""Where a module may need every token, for messages."""


@dataclass(frozen=True)
class EncoderPlan(Plan):
    """What is decided for one encoder, and read by its blocks, attentions and output adapters.

    Attributes:
        family: the row.
        method: the row of the config's method.
        schedule: tokens that each block is asked to merge, of those that may (see `num_layers`); for MaMe all 0.
        merging: whether each of them merges.
        num_blocks: all blocks of the tower.
        num_prefix_tokens: leading tokens that are never merged.
        proportional: whether log(size) is added to the attention logits.
        unmerge: whether all tokens are unmerged after the last block.
        reads: indices of the hidden states that a model around the tower reads (0 = embeddings); empty where it reads
            the tower's output.
        unmerge_reads: whether these are unmerged one by one, while later blocks keep merging.
        outputs: what is done with the tokens after the last block, in words.
        has_readers: whether something behind the blocks reads the sizes of the tokens.
        num_class_tokens: the leading tokens whose attention tells what matters.
        last_queries: how many leading tokens the last block computes, where its others are not read.
    """

    family: Family
    method: Method
    schedule: tuple[int, ...]
    merging: tuple[bool, ...]
    num_blocks: int
    num_prefix_tokens: int
    proportional: bool
    unmerge: bool
    reads: tuple[int, ...] = ()
    unmerge_reads: bool = False
    outputs: tuple[str, ...] = ()
    has_readers: bool = False
    num_class_tokens: int = 0
    last_queries: int | None = None

    @property
    def num_layers(self) -> int:
        """The number of blocks that may merge: all, or those before the place where all tokens are unmerged."""
        return len(self.merging)

    @property
    def hands_on_reads(self) -> bool:
        """Whether merged hidden states in `reads` are returned merged."""
        return bool(self.reads) and not (self.unmerge or self.unmerge_reads)

    @property
    def keeps_matches(self) -> bool:
        """Whether the merges of a pass are kept to the end of it."""
        return self.config.trace or self.unmerge or self.unmerge_reads

    @property
    def follows_position(self) -> bool:
        """Whether some part of the model goes by the tokens' positions."""
        hands_on = self.hands_on_reads  # language models take image tokens in order
        return self.family.rotary is not None or self.family.position_bias is not None or hands_on

    @property
    def blocks_read(self) -> int:
        """The number of these blocks that something is read of; later ones need not run."""
        return min(max(self.reads), self.num_layers) if self.hands_on_reads else self.num_layers

    def describe(self, module: Any, summary: PassSummary | None) -> Description:
        """See the base class."""
        return Description(
            tower=self.family.tower,
            schedule=self.schedule,
            merging=self.merging,
            blocks_run=self.blocks_read if summary is None else summary.blocks_run,
            backend=backend_of(module),
            proportional_attention=self.proportional,
            num_prefix_tokens=self.num_prefix_tokens,
            outputs=self.outputs,
            unmerged=self.unmerge,
            last_queries=self.last_queries if summary is None else summary.last_queries,
        )

    def shape(self, module: Any) -> EncoderShape | None:
        """See the base class; `None` for a config whose sizes are not known."""
        try:
            is_timm = self.family.library == "timm"
            shape = timm_shape(module) if is_timm else family_shape(self.family, module.config)
        except ValueError:
            return None  # it costs the report its GFLOPs, nothing else
        return replace(shape, num_prefix_tokens=self.num_prefix_tokens)


def find_towers(root: nn.Module, towers: Mapping[str, Family] = TOWERS) -> Iterator[tuple[str, nn.Module, Family]]:
    """Yield path, module and row of every tower in a model; `towers` are the rows of transformers' classes."""
    for path, module in root.named_modules():
        rows = TIMM_TOWERS if is_timm(module) else towers if isinstance(module, transformers.PreTrainedModel) else {}
        family = rows.get(type(module).__name__)
        if family is not None:
            yield path, module, family


def plan_tower(
    root: nn.Module, path: str, module: nn.Module, family: Family, config: MergeConfig, wrappers: Wrappers
) -> Target:
    """Plan merging for the tower at `path`, with what `wrappers` says of the models around it.

    Raises:
        UnsupportedModelError: an output adapter that cannot take merged tokens, or an attention implementation that
            cannot weigh them.
        ValueError: the config does not fit the model.
    """
    owned = list(_outputs_of(root, path, family, wrappers))
    if family.library == "timm":
        check_timm(module)
    blocks = list(attrgetter(family.layers)(module))
    check_blocks(blocks, family.library)
    check_backend(backend_of(module))
    num_blocks, merging = len(blocks), config.merging_blocks(len(blocks))
    unmerge = _unmerges(root, owned, config)
    reads, unmerge_reads = _reads_of(root, owned, num_blocks, merging, unmerge)
    if unmerge and reads:
        blocks = blocks[: max(min(reads), 1)]  # the grid is back from there on, and the blocks behind stay as they are
    attentions = [attrgetter(family.attention)(block) for block in blocks]
    check_blocks(attentions, family.library)
    # An unmerged grid is averaged, and laid out, as without merging.
    outputs = patches_of([(owner, row) for owner, row in owned if row.when_unmerged or not unmerge])
    if family.library == "timm" and all(change.module is not module for change in outputs):
        raise UnsupportedModelError(
            f"{type(root).__name__} reads the tokens of several blocks on the full grid (`features_only`), and merged "
            f"tokens have no grid. {NEXT_STEPS}"
        )
    tower_config = getattr(module, "config", None)
    cropped = max((row.num_cropped(owner) for owner, row in owned if row.num_cropped), default=0)
    plan = EncoderPlan(
        config=config,
        family=family,
        method=METHODS[config.method],
        schedule=config.schedule(num_blocks)[: len(blocks)],
        merging=merging[: len(blocks)],
        num_blocks=num_blocks,
        num_prefix_tokens=max(family.num_protected(tower_config, module), cropped),
        num_class_tokens=family.num_class_tokens(tower_config, module),
        proportional=config.weighs_attention(METHODS[config.method].proportional and family.proportional),
        unmerge=unmerge,
        reads=reads,
        unmerge_reads=unmerge_reads,
        outputs=descriptions(row for owner, row in owned if unmerge_reads or owner is not module or not reads),
        has_readers=any(getattr(change.mixin, "reads_sizes", False) for change in outputs),
    )
    if not reads and not any(row.reads_tokens for _, row in owned):
        plan = replace(plan, last_queries=_last_queries(plan))
    mixin = family.attention_mixin or ATTENTIONS.get(family.library, MergedAttention)
    block_mixin = family.block_mixin or MergedBlock
    patches = [Patch(block, block_mixin, index) for index, block in enumerate(blocks)]
    patches += [Patch(part, mixin, index, forward_module(part)) for index, part in enumerate(attentions)]
    check_forwards([change.module for change in (*patches, *outputs)])
    return Target(path, module, plan, Recorder(), (*patches, *outputs))


def patches_of(owned: Sequence[Owned]) -> list[Patch]:
    """Return how the modules that output adapters name are patched; a model may have been built without one."""
    modules = [(row, _at(owner, row.target)) for owner, row in owned if row.mixin is not None]
    return [Patch(module, row.mixin, detail=row) for row, module in modules if module is not None]  # type: ignore[arg-type]


def descriptions(rows: Iterator[OutputAdapter]) -> tuple[str, ...]:
    """Return what output adapters do, in words, each once."""
    return tuple(dict.fromkeys(row.description for row in rows if row.description))


def check_reads(
    model: str,
    reads: Sequence[int],
    merging: Sequence[bool],
    unmerge: bool = False,
    field: str = "vision_feature_layer",
) -> None:
    """Raise a `ValueError` where every merge would come after the hidden state that a model reads.

    Args:
        model: what it is called.
        reads: indices of the hidden states that it reads.
        merging: whether each block merges.
        unmerge: whether all tokens are unmerged for it, from the first of them on.
        field: the setting that names the layers that it reads.
    """
    if not reads or not any(merging):
        return
    # An unmerged grid is read from the first of them on; tokens read at several places follow the last.
    last = min(reads) if unmerge else max(reads)
    if not any(merging[:last]):
        raise ValueError(
            f"The config merges in blocks {[i for i, merges in enumerate(merging) if merges]} only, but {model} reads "
            f"its image features before block {last} (`{field}`), so nothing of it would be seen. Let "
            f"some of the blocks 0 to {last - 1} merge."
            if last
            else f"{model} reads its image features before the first block (`{field}`), so that no merge "
            "can come before; set a later feature layer."
        )


def _reads_of(
    root: nn.Module, owned: Sequence[Owned], num_blocks: int, merging: Sequence[bool], unmerge: bool
) -> tuple[tuple[int, ...], bool]:
    """Return the hidden states that are read, and whether these are unmerged one by one.

    Raises:
        ValueError: every merge would come after them.
    """
    for owner, row in owned:
        reads = row.reads(owner, num_blocks) if row.reads else ()
        if reads:
            check_reads(type(root).__name__, reads, merging, unmerge, row.reads_field)
            return reads, row.unmerge_reads
    return (), False


def check_keeps_tokens(module: nn.Module, config: MergeConfig, where: str = AT_THE_END) -> None:
    """Raise an `UnsupportedModelError` for a method that drops tokens; `where` says where the module needs all."""
    if METHODS[config.method].drops_tokens:
        raise UnsupportedModelError(
            f"{type(module).__name__} needs every token {where}, and method {config.method!r} drops tokens "
            "for good. Use a method that merges, such as 'tome'."
        )


def _unmerges(root: nn.Module, owned: Sequence[Owned], config: MergeConfig) -> bool:
    """Return whether all tokens are unmerged after the last block, because of the config or of an output adapter."""
    needs_grid, unmerges_reads = (
        any(row.unmerge for _, row in owned),
        any(row.unmerge_reads for _, row in owned),
    )
    if needs_grid or unmerges_reads:
        check_keeps_tokens(root, config, "in each hidden state that it reads" if unmerges_reads else AT_THE_END)
    return (config.restore or needs_grid) and not unmerges_reads


def _last_queries(plan: EncoderPlan) -> int | None:
    """Return how many leading tokens the last block has to compute, given that the others are not read; or `None`."""
    config, family, last = plan.config, plan.family, plan.num_layers - 1
    if not config.exact_last_block or config.trace or plan.unmerge or not any(plan.merging):
        return None
    # These parts of a family go by position or have a forward of their own.
    if family.rotary is not None or family.position_bias is not None or family.library in ATTENTIONS:
        return None
    fields = config.match_fields(plan.method)
    if plan.merging[last] and plan.method.planned_tokens(2, 0, 1, fields) is None:
        return None  # only the merge itself tells how many tokens are left
    return plan.num_prefix_tokens or None


def _outputs_of(root: nn.Module, path: str, family: Family, wrappers: Wrappers) -> Iterator[Owned]:
    """Yield the output adapters of the tower and of every model around it, from the outermost in.

    Raises:
        UnsupportedModelError: a model around the tower that is not supported, or not known.
    """
    owners = [root]
    for name in path.split(".") if path else ():
        owners.append(getattr(owners[-1], name))
    for owner in owners:
        if owner is not root and not isinstance(owner, transformers.PreTrainedModel):
            continue
        name = type(owner).__name__
        rows = family.heads.get(name, wrappers.get(name))
        if rows is None:
            raise UnsupportedModelError(unknown_owner(owner, family))
        if isinstance(rows, str):
            raise UnsupportedModelError(f"{name} is not supported: {rows}. {NEXT_STEPS}")
        for row in rows:
            if owner is root or not row.at_root:  # a model around the tower takes its tokens
                yield owner, row


def _at(owner: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a dotted path, or `None` where there is none; "" is the owner itself."""
    module: Any = owner
    for name in path.split(".") if path else ():
        module = getattr(module, name, None)
        if module is None:
            return None
    return module

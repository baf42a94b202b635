"""Plan what merging does to each packed tower in a model. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from torch import nn

from ....config import MergeConfig
from ....errors import UnsupportedModelError
from ....merging.methods import METHODS, Method
from ....patching.plans import Description, Patch, Plan, Target, check_blocks, check_forwards, forward_module
from ....patching.recorder import PassSummary, Recorder
from ...choice import towers_with_rows
from ...encoders.attention import backend_of, check_backend
from ...encoders.plan import check_keeps_tokens
from .attention import PackedAttention
from .block import PackedBlock, UnmergedInput, WindowedTower
from .family import PackedFamily
from .groups import GroupedTower, GroupedWindows, GroupReader, RestoredGroups
from .rows import GROUPED_TOWERS, PACKED_TOWERS
from .state import PackedSummary

RESTORED = "needs every token, so the full grid is restored after the last block"
GROUPS_RESTORED = "runs on the groups that are left, and each is given back behind its patch merger"
READ_BETWEEN = "; what is read between the blocks is unmerged, and later blocks keep merging"


@dataclass(frozen=True)
class UnmergedTowerPlan(Plan):
    """What is decided for a tower that unmerges every token behind its last block.

    Attributes:
        family: the row.
        method: the row of the config's method.
        schedule: tokens that each block is asked to merge of every image, or frame; for MaMe all 0.
        merging: whether each of them merges.
        num_prefix_tokens: tokens in front of each image that are never merged.
        proportional: whether log(size) is added to the attention logits.
        outputs: what is done with the tokens, in words.
    """

    family: Any
    method: Method
    schedule: tuple[int, ...]
    merging: tuple[bool, ...]
    num_prefix_tokens: int
    proportional: bool
    outputs: tuple[str, ...]

    @property
    def num_layers(self) -> int:
        """The number of blocks."""
        return len(self.merging)

    @property
    def num_blocks(self) -> int:
        """The number of blocks, all of which are patched."""
        return len(self.merging)

    def describe(self, module: Any, summary: PassSummary | None) -> Description:
        """See the base class."""
        return Description(
            tower=self.family.tower,
            schedule=self.schedule,
            merging=self.merging,
            blocks_run=self.num_layers,
            backend=backend_of(module),
            proportional_attention=self.proportional,
            num_prefix_tokens=self.num_prefix_tokens,
            outputs=self.outputs,
            unmerged=True,
        )


@dataclass(frozen=True)
class PackedPlan(UnmergedTowerPlan):
    """What is decided for one packed tower, and read by its blocks and attentions.

    Attributes:
        group_size: how many tokens in a row merge as one: 1, or those of a group where whole groups merge.
        unmerge: whether every token is given back after the last block, rather than each group behind the merger.
        feeds_language: whether a language model gets the merged groups.
    """

    family: PackedFamily
    group_size: int = 1
    unmerge: bool = True
    feeds_language: bool = False

    def describe(self, module: Any, summary: PassSummary | None) -> Description:
        """See the base class."""
        outputs = self.outputs
        if self.feeds_language and summary is not None:
            counts = summary.mean_tokens()
            first, last = (count / self.group_size for count in (counts[0], counts[-1]))
            outputs = (*outputs, f"the language model gets {last:.4g} of {first:.4g} tokens of an image")
        description = super().describe(module, summary)
        return replace(description, outputs=outputs, unmerged=self.unmerge, group_size=self.group_size)

    def gflops(self, module: Any, summary: PassSummary | None) -> tuple[float, float] | None:
        """Return GFLOPs an image, or a frame, as of the last pass."""
        if not isinstance(summary, PackedSummary):
            return None
        return packed_gflops(module, self, summary)


def find_packed(root: nn.Module) -> Iterator[tuple[str, nn.Module, PackedFamily]]:
    """Yield path, module and row of every packed tower in a model."""
    return towers_with_rows(root, PACKED_TOWERS)


def plan_packed(path: str, module: nn.Module, family: PackedFamily, config: MergeConfig) -> Target:
    """Plan merging for the packed tower at `path`.

    Raises:
        UnsupportedModelError: the method drops tokens, the attention implementation cannot weigh them, or whole groups
            are to merge and the tower's do not stay together.
        ValueError: the config does not fit the model.
    """
    check_keeps_tokens(module, config)
    method, blocks = METHODS[config.method], list(attrgetter(family.layers)(module))
    attentions = [attrgetter(family.attention)(block) for block in blocks]
    for parts in (blocks, attentions):
        check_blocks(parts, family.library)
    check_backend(backend_of(module))
    in_groups = config.where == "groups"
    group_size = _group_size(module, family) if in_groups else 1
    unmerge = not in_groups or config.restore or family.merger is None
    patches = [Patch(block, PackedBlock, index) for index, block in enumerate(blocks)]
    patches += [Patch(part, PackedAttention, index, forward_module(part)) for index, part in enumerate(attentions)]
    patches += _patches_around(module, family, unmerge)
    check_forwards([change.module for change in patches])
    outputs = RESTORED + READ_BETWEEN if family.readers else RESTORED
    plan = PackedPlan(
        config=config,
        family=family,
        method=method,
        schedule=config.schedule(len(blocks)),
        merging=tuple(config.merging_blocks(len(blocks))),
        num_prefix_tokens=family.num_prefix_tokens,
        proportional=config.weighs_attention(method.proportional and family.proportional),
        outputs=(outputs if unmerge else GROUPS_RESTORED,),
        group_size=group_size,
        unmerge=unmerge,
    )
    return Target(path, module, plan, Recorder(), tuple(patches))


def _group_size(module: nn.Module, family: PackedFamily) -> int:
    """Return how many patches make one token of the language model.

    Raises:
        UnsupportedModelError: they are not next to each other, so that they do not merge as one.
    """
    if family.no_groups is not None:
        raise UnsupportedModelError(
            f"`where='groups'` merges whole groups of patches, and {type(module).__name__} is not supported there: "
            f"{family.no_groups}. Supported: {', '.join(GROUPED_TOWERS)}. Use `where='tower'`, or "
            "`where='projected'` for fewer tokens in the language model."
        )
    return int(module.config.spatial_merge_size) ** 2  # type: ignore[union-attr, arg-type]


def _patches_around(module: nn.Module, family: PackedFamily, unmerge: bool) -> list[Patch]:
    """Return how what stands around the blocks of a tower is patched."""
    readers = attrgetter(family.readers)(module) if family.readers else ()
    if unmerge:
        patches = [Patch(reader, UnmergedInput) for reader in readers]
        return [*patches, *([Patch(module, WindowedTower)] if family.windows else [])]
    patches = [Patch(reader, GroupReader, index) for index, reader in enumerate(readers)]
    patches.append(Patch(attrgetter(str(family.merger))(module), RestoredGroups))
    return [*patches, Patch(module, GroupedWindows if family.windows else GroupedTower)]


def linear_weights(module: nn.Module) -> int:
    """Return the multiply-adds of a module's linear layers for one token."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def packed_gflops(module: Any, plan: PackedPlan, summary: PackedSummary) -> tuple[float, float]:
    """Return GFLOPs (multiply-adds) an image of a pass, and of the same unmerged.

    Linear layers outside of the blocks take the patches; behind the blocks, one in each group of them.
    """
    family = plan.family
    blocks = list(attrgetter(family.layers)(module))
    in_blocks = {id(part) for block in blocks for part in block.modules()}
    patches, merge_size = summary.computed[0][0], getattr(module.config, "spatial_merge_size", 1)
    left = _tokens_behind(module, plan, summary)
    merged = unmerged = 0.0
    for path, part in module.named_modules():
        if id(part) not in in_blocks and isinstance(part, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            is_embedding = "embed" in path
            each = part.weight.numel() / (1 if is_embedding else merge_size**2)
            unmerged += each * patches
            merged += each * (patches if is_embedding else left.get(id(part), left[None]))
    for index, block in enumerate(blocks):
        attention = attrgetter(family.attention)(block)
        mlp = attrgetter(family.mlp)(block)
        attention_weights, mlp_weights = linear_weights(attention), linear_weights(mlp)
        width = 2 * getattr(attention, family.out).in_features  # queries by keys, and weights by values
        (before, pairs), (after, _) = summary.computed[index : index + 2]
        merged += before * attention_weights + after * mlp_weights + pairs * width + summary.matching[index]
        unmerged += patches * (attention_weights + mlp_weights) + summary.unmerged_pairs[index] * width
    return merged / 1e9, unmerged / 1e9


def _tokens_behind(module: Any, plan: PackedPlan, summary: PackedSummary) -> dict[int | None, float]:
    """Return how many tokens go into what stands behind blocks: by id, and at `None` for all behind the last one."""
    patches = summary.computed[0][0]
    if plan.unmerge:
        return {None: patches}
    readers = attrgetter(plan.family.readers)(module) if plan.family.readers else ()
    return {None: summary.computed[-1][0]} | {
        id(part): summary.computed[index][0]
        for reader, index in zip(readers, summary.read_before)
        for part in reader.modules()
    }

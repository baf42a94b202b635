"""Plan what merging does to each packed tower in a model. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from ....config import MergeConfig
from ....merging.methods import METHODS, Method
from ....patching.plans import Description, Patch, Plan, Target, check_blocks, check_forwards, forward_module
from ....patching.recorder import PassSummary, Recorder
from ...choice import towers_with_rows
from ...encoders.attention import backend_of, check_backend
from ...encoders.plan import check_keeps_tokens
from .attention import PackedAttention
from .block import PackedBlock, UnmergedInput, WindowedTower
from .family import PackedFamily
from .rows import PACKED_TOWERS
from .state import PackedSummary

RESTORED = "needs every token, so the full grid is restored after the last block"
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
    """What is decided for one packed tower, and read by its blocks and attentions."""

    family: PackedFamily

    def gflops(self, module: Any, summary: PassSummary | None) -> tuple[float, float] | None:
        """Return GFLOPs an image, or a frame, as of the last pass."""
        if not isinstance(summary, PackedSummary):
            return None
        return packed_gflops(module, self.family, summary)


def find_packed(root: nn.Module) -> Iterator[tuple[str, nn.Module, PackedFamily]]:
    """Yield path, module and row of every packed tower in a model."""
    return towers_with_rows(root, PACKED_TOWERS)


def plan_packed(path: str, module: nn.Module, family: PackedFamily, config: MergeConfig) -> Target:
    """Plan merging for the packed tower at `path`.

    Raises:
        UnsupportedModelError: the method drops tokens, or the attention implementation cannot weigh them.
        ValueError: the config does not fit the model.
    """
    check_keeps_tokens(module, config)
    method = METHODS[config.method]
    blocks = list(attrgetter(family.layers)(module))
    attentions = [attrgetter(family.attention)(block) for block in blocks]
    for parts in (blocks, attentions):
        check_blocks(parts, family.library)
    check_backend(backend_of(module))
    plan = PackedPlan(
        config=config,
        family=family,
        method=method,
        schedule=config.schedule(len(blocks)),
        merging=tuple(config.merging_blocks(len(blocks))),
        num_prefix_tokens=family.num_prefix_tokens,
        proportional=config.weighs_attention(method.proportional and family.proportional),
        outputs=(RESTORED + READ_BETWEEN if family.readers else RESTORED,),
    )
    patches = [Patch(block, PackedBlock, index) for index, block in enumerate(blocks)]
    patches += [Patch(part, PackedAttention, index, forward_module(part)) for index, part in enumerate(attentions)]
    if family.readers:
        patches += [Patch(reader, UnmergedInput) for reader in attrgetter(family.readers)(module)]
    if family.windows:
        patches.append(Patch(module, WindowedTower))
    check_forwards([change.module for change in patches])
    return Target(path, module, plan, Recorder(), tuple(patches))


def linear_weights(module: nn.Module) -> int:
    """Return the multiply-adds of a module's linear layers for one token."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def packed_gflops(module: Any, family: PackedFamily, summary: PackedSummary) -> tuple[float, float]:
    """Return GFLOPs (multiply-adds) an image of a pass, and of the same unmerged.

    Linear layers outside of the blocks take the patches; behind the blocks, one in each group of them.
    """
    blocks = list(attrgetter(family.layers)(module))
    in_blocks = {id(part) for block in blocks for part in block.modules()}
    patches = summary.computed[0][0]
    merge_size = getattr(module.config, "spatial_merge_size", 1)
    around = 0.0
    for path, part in module.named_modules():
        if id(part) not in in_blocks and isinstance(part, (nn.Linear, nn.Conv2d, nn.Conv3d)):
            is_embedding = "embed" in path
            around += part.weight.numel() * (patches if is_embedding else patches / merge_size**2)
    merged = unmerged = around
    for index, block in enumerate(blocks):
        attention = attrgetter(family.attention)(block)
        mlp = attrgetter(family.mlp)(block)
        attention_weights, mlp_weights = linear_weights(attention), linear_weights(mlp)
        width = 2 * getattr(attention, family.out).in_features  # queries by keys, and weights by values
        (before, pairs), (after, _) = summary.computed[index : index + 2]
        merged += before * attention_weights + after * mlp_weights + pairs * width + summary.matching[index]
        unmerged += patches * (attention_weights + mlp_weights) + summary.unmerged_pairs[index] * width
    return merged / 1e9, unmerged / 1e9

"""Plan what merging does to each tower with windows in a model. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from ....config import MergeConfig
from ....errors import UnsupportedModelError
from ....merging.methods import METHODS
from ....patching.plans import (
    NEXT_STEPS,
    Patch,
    Target,
    check_blocks,
    check_forwards,
    forward_module,
)
from ....patching.recorder import PassSummary, Recorder
from ...choice import towers_with_rows
from ...encoders.plan import check_keeps_tokens
from ..packed.plan import UnmergedTowerPlan, linear_weights
from ..packed.state import PackedSummary
from .attention import WindowAttention
from .block import GlobalReads, HiddenStateReads, WindowBlock
from .family import WINDOW_TOWERS, WindowFamily

RESTORED = "tokens merge in their windows, and the full grid is restored after the last block"
READ_BETWEEN = {
    None: "",
    "global": "; what global blocks give out is unmerged, and later blocks keep merging",
    "hidden_states": "; hidden states are unmerged, and later blocks keep merging",
}


@dataclass(frozen=True)
class WindowPlan(UnmergedTowerPlan):
    """What is decided for one tower with windows, and read by its blocks and attentions.

    Attributes:
        window_size: the side of the windows, 0 where every block attends to the whole grid.
        global_blocks: the blocks that do.
    """

    family: WindowFamily
    window_size: int
    global_blocks: tuple[int, ...]

    def gflops(self, module: Any, summary: PassSummary | None) -> tuple[float, float] | None:
        """Return GFLOPs (multiply-adds) an image in the blocks, as of the last pass; positions are left out."""
        if not isinstance(summary, PackedSummary):
            return None
        merged = unmerged = 0.0
        patches = summary.computed[0][0]
        for index, block in enumerate(attrgetter(self.family.layers)(module)):
            attention = getattr(block, self.family.attention)
            projections, mlp = linear_weights(attention), linear_weights(getattr(block, self.family.mlp))
            width = 2 * getattr(attention, self.family.out).in_features  # queries by keys, and weights by values
            (before, pairs), (after, _) = summary.computed[index : index + 2]
            projected = summary.projected[index]
            unmerged += projected * projections + patches * mlp + summary.unmerged_pairs[index] * width
            own = before == patches == after  # the model's own block, which projects pads as well
            merged += (projected if own else before) * projections + after * mlp
            merged += (summary.unmerged_pairs[index] if own else pairs) * width + summary.matching[index]
        return merged / 1e9, unmerged / 1e9


def find_windowed(root: nn.Module) -> Iterator[tuple[str, nn.Module, WindowFamily]]:
    """Yield path, module and row of every tower with windows in a model."""
    return towers_with_rows(root, WINDOW_TOWERS)


def plan_windowed(path: str, module: nn.Module, family: WindowFamily, config: MergeConfig) -> Target:
    """Plan merging for the tower with windows at `path`.

    Raises:
        UnsupportedModelError: the method drops tokens, or windows of this build cannot merge.
        ValueError: the config does not fit the model.
    """
    check_keeps_tokens(module, config)
    method = METHODS[config.method]
    blocks = list(attrgetter(family.layers)(module))
    attentions = [getattr(block, family.attention) for block in blocks]
    for parts in (blocks, attentions):
        check_blocks(parts, family.library)
    sizes = [block.window_size for block in blocks]
    sides = {side for side in sizes if side > 0}
    if sides == {1} or len(sides) > 1:
        raise UnsupportedModelError(
            f"The blocks of this {type(module).__name__} have windows of side {', '.join(map(str, sorted(sides)))}; "
            "merging takes windows of one size, of at least two tokens."
        )
    if family.convolutions and any(getattr(block, family.convolutions) for block in blocks):
        raise UnsupportedModelError(
            f"Convolutions follow some of the blocks of this {type(module).__name__} (`residual_block_indices`), and "
            f"take every token in its place. {NEXT_STEPS}"
        )
    plan = WindowPlan(
        config=config,
        family=family,
        method=method,
        schedule=config.schedule(len(blocks)),
        merging=tuple(config.merging_blocks(len(blocks))),
        num_prefix_tokens=0,
        window_size=max(sides, default=0),
        global_blocks=tuple(index for index, side in enumerate(sizes) if side == 0),
        proportional=config.weighs_attention(method.proportional and family.proportional),
        outputs=(RESTORED + READ_BETWEEN[family.reads],),
    )
    patches = [Patch(block, WindowBlock, index) for index, block in enumerate(blocks)]
    patches += [Patch(part, WindowAttention, index, forward_module(part)) for index, part in enumerate(attentions)]
    if family.reads == "global":
        patches.append(Patch(module, GlobalReads))
    elif family.reads == "hidden_states":
        patches.append(Patch(module.get_submodule("encoder"), HiddenStateReads))
    check_forwards([change.module for change in patches])
    return Target(path, module, plan, Recorder(), tuple(patches))

"""GFLOPs of merge configs on a model, at any image size, from the plan alone: nothing runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .....adapters.encoders.families.dims import EncoderShape
from .....api import plan_targets
from .....config import MergeConfig
from .....inspection.flops import count_flops, merged_flops, planned_tokens


@dataclass(frozen=True)
class Costs:
    """What configs cost on one tower, as a share of the unmerged model at full size.

    Attributes:
        shape: of the tower, at full size.
        blocks: the blocks that run where something merges; the model reads nothing of later ones.
        unmerged_behind: whether later blocks run all the same, on all tokens.
        last_queries: the leading tokens that the last block computes where something merges (`exact_last_block`).
    """

    shape: EncoderShape
    blocks: int
    unmerged_behind: bool = False
    last_queries: int | None = None

    @classmethod
    def of(cls, model: Any) -> Costs | None:
        """Return the costs of a model with one tower; `None` where its sizes are not known."""
        targets = plan_targets(model, MergeConfig(r=1))
        shape = targets[0].plan.shape(targets[0].module) if len(targets) == 1 else None
        if shape is None:
            return None
        told = targets[0].plan.describe(targets[0].module, None)
        return cls(shape, told.blocks_run, told.unmerged, told.last_queries)

    @property
    def unmerged(self) -> float:
        """GFLOPs of the unmerged model at this size."""
        full = [(self.shape.num_tokens, self.shape.num_tokens)] * self.shape.num_layers
        return count_flops(self.shape, full, None).gflops

    @property
    def exact_gflops(self) -> float:
        """GFLOPs of the unmerged model with its exact last block."""
        full = [(self.shape.num_tokens, self.shape.num_tokens)] * self.shape.num_layers
        return count_flops(self.shape, full, None, last_queries=self.last_queries).gflops

    def at(self, num_tokens: int | None) -> Costs:
        """Return the costs for images of so many tokens."""
        if num_tokens is None:
            return self
        now, before = (count - self.shape.num_prefix_tokens for count in (num_tokens, self.shape.num_tokens))
        patch_flops = round(self.shape.patch_flops * now / before)
        return replace(self, shape=replace(self.shape, num_tokens=num_tokens, patch_flops=patch_flops))

    def gflops(self, config: MergeConfig) -> float:
        """Return the GFLOPs of a config whose tokens it alone decides."""
        merges = any(config.merging_blocks(self.shape.num_layers))
        if not merges:
            return self.unmerged
        last = self.last_queries if config.exact_last_block else None
        full = (self.shape.num_tokens, self.shape.num_tokens)
        tokens: list[tuple[float, float]] = [*planned_tokens(self.shape, config)[: self.blocks]]
        tokens += [full if self.unmerged_behind else (0, 0)] * (self.shape.num_layers - self.blocks)
        return merged_flops(self.shape, tokens, config, last_queries=last).gflops

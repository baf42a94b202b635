"""What the search chooses from, and how a choice becomes a config that costs what it may."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .....config import MergeConfig, format_config
from .....merging.methods import get_method
from ....variants import Variant
from .costs import Costs
from .schedules import FLOOR, constant, decreasing, fit, peaked

Size = tuple[int, int]
KEEP_STEPS = 1000
"""Into how many steps the share of the tokens that MaMe keeps is divided."""


@dataclass(frozen=True)
class Settings:
    """One choice; the budget decides how many tokens merge.

    Attributes:
        centre, width, floor: of the schedule (see `schedules.peaked`); without a centre it is constant.
        fields: of the `MergeConfig`, besides `r`.
        image_size: height and width that images are downsampled to; `None` for the model's own.
    """

    centre: float | None = 0.4
    width: float = 0.5
    floor: float = FLOOR
    fields: Mapping[str, Any] = field(default_factory=dict)
    image_size: Size | None = None

    def having(self, **fields: Any) -> Settings:
        """Return the same with other fields of the config."""
        return replace(self, fields={**self.fields, **fields})


@dataclass(frozen=True)
class Space:
    """Configs that merge in the blocks of a tower, at given costs.

    Attributes:
        costs: of the model at full size.
        sizes: the tokens of each smaller image size that the model takes.
        unit: what the cost is counted in.
    """

    costs: Costs
    sizes: Mapping[Size, int] = field(default_factory=dict)
    unit: str = "GFLOPs"

    @property
    def exact_share(self) -> float | None:
        """What the unmerged model costs with its exact last block; `None` where all of that is read."""
        return None if self.costs.last_queries is None else self.costs.exact_gflops / self.costs.unmerged

    def gflops(self, budget: float) -> float:
        """Return the GFLOPs that a share of the unmerged model's stands for."""
        return budget * self.costs.unmerged

    def share(self, variant: Variant) -> float:
        """Return what a variant costs, as a share of the unmerged model's GFLOPs."""
        if variant.exact_last_block:
            return self.costs.exact_gflops / self.costs.unmerged
        return self._costs(variant.image_size).gflops(variant.config) / self.costs.unmerged

    def variant(self, settings: Settings, budget: float) -> Variant | None:
        """Return the mildest variant of these settings within the budget; `None` where there is none."""
        costs, limit = self._costs(settings.image_size), self.gflops(budget)
        if settings.image_size is not None and costs.unmerged <= limit:
            return self._named(MergeConfig(), settings.image_size)
        if not get_method(settings.fields.get("method", "tome")).takes_r:
            return self._by_keep_ratio(settings, costs, limit)
        num_layers = costs.blocks
        weights = constant(num_layers)
        if settings.centre is not None:
            weights = peaked(num_layers, settings.centre, settings.width, settings.floor)
            if costs.last_queries is not None:
                weights[-1] = 0.0  # nothing reads what merges there
        return self._by_r(weights, settings, costs, limit)

    def decreasing(self, budget: float) -> Variant | None:
        """Return ToMe's decreasing schedule within the budget."""
        weights = decreasing(self.costs.blocks)
        return self._by_r(weights, Settings(), self.costs, self.gflops(budget))

    def images(self, size: Size) -> Variant:
        """Return the unmerged model on images of a smaller size."""
        return self._named(MergeConfig(), size)

    def _costs(self, size: Size | None) -> Costs:
        return self.costs.at(None if size is None else self.sizes[size])

    def _by_r(self, weights: list[float], settings: Settings, costs: Costs, limit: float) -> Variant | None:
        make: Callable[[list[int]], MergeConfig] = lambda r: MergeConfig(r=r, **settings.fields)  # noqa: E731
        r = fit(weights, lambda r: costs.gflops(make(r)), limit, costs.shape.num_tokens)
        if r is None:
            return None
        most, counts = costs.shape.num_tokens, []
        for number in r:  # what a block cannot merge is not asked of it
            number = min(number, max(most - costs.shape.num_prefix_tokens, 0) // 2)
            counts.append(number)
            most -= number
        return self._named(make(counts), settings.image_size) if any(counts) else None

    def _by_keep_ratio(self, settings: Settings, costs: Costs, limit: float) -> Variant | None:
        make: Callable[[int], MergeConfig] = lambda step: MergeConfig(  # noqa: E731
            keep_ratio=step / KEEP_STEPS, **settings.fields
        )
        low, high = KEEP_STEPS // 2, KEEP_STEPS
        if costs.gflops(make(low)) > limit:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if costs.gflops(make(middle)) <= limit else (low, middle)
        return self._named(make(low), settings.image_size)

    def _named(self, config: MergeConfig, size: Size | None) -> Variant:
        name = format_config(config)
        if size is not None:
            name = f"{size[0]}x{size[1]} px" + ("" if config == MergeConfig() else f", {name}")
        return Variant(name, config, size)

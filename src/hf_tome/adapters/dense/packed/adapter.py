"""The adapter of packed towers, those of Qwen-VL and GLM-V among them."""

from __future__ import annotations

from torch import nn

from ....config import MergeConfig
from ....patching.plans import Target
from ...choice import chosen_towers
from .plan import find_packed, plan_packed


class PackedTowerAdapter:
    """Merge within each image of a packed tower, whose tokens are all given back (see `adapters.Adapter`)."""

    name = "packed"
    places = ("tower",)

    def finds(self, root: nn.Module) -> bool:
        """Return whether a model is, or holds, a packed tower with a row."""
        return any(True for _ in find_packed(root))

    def plan(self, root: nn.Module, config: MergeConfig) -> list[Target]:
        """Plan merging for every packed tower in a model."""
        return [plan_packed(*tower, config) for tower in chosen_towers(find_packed(root), config)]

    def reason(self, root: nn.Module) -> str | None:
        """Return nothing: models without such a tower have the reasons of plain encoders."""
        return None

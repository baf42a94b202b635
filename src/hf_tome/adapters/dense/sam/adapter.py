"""The adapter of towers with windows: SAM's, and those of models that have it."""

from __future__ import annotations

from torch import nn

from ....config import MergeConfig
from ....patching.plans import Target
from ...choice import chosen_towers
from .plan import find_windowed, plan_windowed


class WindowTowerAdapter:
    """Merge within the windows of a tower, whose tokens are all given back (see `adapters.Adapter`)."""

    name = "windows"
    places = ("tower",)

    def finds(self, root: nn.Module) -> bool:
        """Return whether a model is, or holds, a tower with windows that has a row."""
        return any(True for _ in find_windowed(root))

    def plan(self, root: nn.Module, config: MergeConfig) -> list[Target]:
        """Plan merging for every tower with windows in a model."""
        return [plan_windowed(*tower, config) for tower in chosen_towers(find_windowed(root), config)]

    def reason(self, root: nn.Module) -> str | None:
        """Return nothing: models without such a tower have the reasons of plain encoders."""
        return None

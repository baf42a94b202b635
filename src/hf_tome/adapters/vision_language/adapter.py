"""The adapters of vision-language models: in the vision tower, and behind the projector."""

from __future__ import annotations

from torch import nn

from ...config import MergeConfig
from ...patching.plans import Target
from ..choice import chosen_towers
from ..encoders.families.registry import WRAPPERS
from ..encoders.plan import find_towers, plan_tower
from ..encoders.reasons import why_not
from .connectors import CONNECTORS
from .models import VISION_LANGUAGE
from .plan_projected import find_owners, plan_projected, why_not_projected

PROJECTED_HINT = "Its projected image tokens can be merged: `MergeConfig(..., where='projected')`. "


class VisionTowerAdapter:
    """Merge in the vision tower of a vision-language model (see `adapters.Adapter`)."""

    name = "vision_language"
    places = ("tower",)

    def finds(self, root: nn.Module) -> bool:
        """Return whether a model is, or holds, a vision-language model around an encoder with a row."""
        is_listed = any(type(module).__name__ in VISION_LANGUAGE for module in root.modules())
        return is_listed and any(True for _ in find_towers(root))

    def plan(self, root: nn.Module, config: MergeConfig) -> list[Target]:
        """Plan merging for every encoder in a model."""
        wrappers = {**WRAPPERS, **VISION_LANGUAGE}
        return [plan_tower(root, *tower, config, wrappers) for tower in chosen_towers(find_towers(root), config)]

    def reason(self, root: nn.Module) -> str | None:
        """Return why there is no tower to merge tokens in, for a model whose projected tokens can be merged."""
        has_projector = any(type(module).__name__ in CONNECTORS for module in root.modules())
        return why_not(root, PROJECTED_HINT) if has_projector else None


class ProjectedAdapter:
    """Merge image tokens between projector and language model (see `adapters.Adapter`)."""

    name = "vision_language"
    places = ("projected",)

    def finds(self, root: nn.Module) -> bool:
        """Return whether a model is, or holds, one whose projected tokens can be merged."""
        return any(True for _ in find_owners(root))

    def plan(self, root: nn.Module, config: MergeConfig) -> list[Target]:
        """Plan merging for every model inside `root` that projects image tokens."""
        return plan_projected(root, config)

    def reason(self, root: nn.Module) -> str:
        """Return why projected tokens cannot be merged."""
        return why_not_projected(root)

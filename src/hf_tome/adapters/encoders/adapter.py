"""The adapter of plain vision and audio encoders, of transformers and timm."""

from __future__ import annotations

from torch import nn

from ...config import MergeConfig
from ...patching.plans import Target
from ..choice import chosen_towers
from .families.registry import WRAPPERS
from .plan import find_towers, plan_tower
from .reasons import why_not


class EncodersAdapter:
    """Merge in the blocks of an encoder: tokens are carried from block to block (see `adapters.Adapter`)."""

    name = "encoders"
    places = ("tower",)

    def finds(self, root: nn.Module) -> bool:
        """Return whether a model is, or holds, an encoder with a row."""
        return any(True for _ in find_towers(root))

    def plan(self, root: nn.Module, config: MergeConfig) -> list[Target]:
        """Plan merging for every encoder in a model."""
        return [plan_tower(root, *tower, config, WRAPPERS) for tower in chosen_towers(find_towers(root), config)]

    def reason(self, root: nn.Module) -> str:
        """Return why there is no encoder to merge tokens in; there is a reason for any model."""
        return why_not(root)

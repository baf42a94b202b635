"""The adapter of dense models: depth, segmentation, detection and the backbones that they are built of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from ...config import MergeConfig
from ...errors import UnsupportedModelError
from ...patching.plans import NEXT_STEPS, Target
from ..choice import chosen_towers
from ..encoders.families.family import Family
from ..encoders.families.registry import TOWERS, WRAPPERS
from ..encoders.plan import find_towers, plan_tower
from .models import DENSE_MODELS, READ_WHOLE, why_unfit
from .speech import WHISPER, whisper_for
from .towers import DENSE_TOWERS


class DenseAdapter:
    """Merge in the blocks of a dense model's tower, and unmerge what it reads by place (see `adapters.Adapter`)."""

    name = "dense"
    places = ("tower",)

    def finds(self, root: nn.Module) -> bool:
        """Return whether a model is, or holds, a dense model around an encoder with a row."""
        is_listed = any(
            type(module).__name__ in DENSE_TOWERS or type(module).__name__ in DENSE_MODELS for module in root.modules()
        )
        return is_listed and any(True for _ in _find(root))

    def plan(self, root: nn.Module, config: MergeConfig) -> list[Target]:
        """Plan merging for every encoder in a model."""
        for module in root.modules():
            if (why := why_unfit(module)) is not None:
                raise UnsupportedModelError(f"{type(module).__name__} is not supported: {why}. {NEXT_STEPS}")
        wrappers = {**WRAPPERS, **DENSE_MODELS}
        return [
            plan_tower(root, path, module, family, config, wrappers)
            for path, module, family in _find_as_read(root, config)
        ]

    def reason(self, root: nn.Module) -> str | None:
        """Return nothing: models without a tower have the reasons of plain encoders."""
        return None


def _find(root: nn.Module) -> Iterator[tuple[str, nn.Module, Family]]:
    return find_towers(root, {**TOWERS, **DENSE_TOWERS})


def _find_as_read(root: nn.Module, config: MergeConfig) -> Iterator[tuple[str, nn.Module, Family]]:
    """Yield the towers, each with the row that says what the models around read of it."""
    rows = [READ_WHOLE[name] for module in root.modules() if (name := type(module).__name__) in READ_WHOLE]
    for path, module, family in chosen_towers(_find(root), config):
        if rows:
            family = replace(family, heads={**family.heads, family.tower: (rows[0],)})
        if family is WHISPER:
            family = whisper_for(config)
        yield path, module, family

"""The adapter of packed towers whose whole groups of patches merge, for fewer tokens in the language model as well."""

from __future__ import annotations

from torch import nn

from ...config import MergeConfig
from ...patching.plans import NEXT_STEPS, Target
from ..dense.packed.plan import find_packed
from ..dense.packed.rows import GROUPED_TOWERS
from .plan import plan_groups


class GroupsAdapter:
    """Merge whole groups of patches in a packed tower, and keep them merged (see `adapters.Adapter`)."""

    name = "groups"
    places = ("groups",)

    def finds(self, root: nn.Module) -> bool:
        """Return whether a model is, or holds, a packed tower with a row."""
        return any(True for _ in find_packed(root))

    def plan(self, root: nn.Module, config: MergeConfig) -> list[Target]:
        """Plan merging for every packed tower in a model, and the language models that they feed."""
        return plan_groups(root, config)

    def reason(self, root: nn.Module) -> str:
        """Return why no groups can merge in a model."""
        return (
            f"`where='groups'` merges groups of patches in towers that pack the patches of all images, and there is "
            f"none in a {type(root).__name__}. Supported: {', '.join(GROUPED_TOWERS)}. Elsewhere use "
            f"`where='tower'` or `where='projected'`. {NEXT_STEPS}"
        )

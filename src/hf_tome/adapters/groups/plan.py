"""Plan merging of whole groups of patches, from a tower to the language model. Nothing is changed here."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ...config import MergeConfig
from ...errors import UnsupportedModelError
from ...patching.plans import Target, check_forwards
from ..choice import chosen_towers
from ..dense.packed.plan import PackedPlan, find_packed, plan_packed
from ..encoders.families.family import OutputAdapter
from ..vision_language.connectors import CONNECTORS
from ..vision_language.models import not_projected
from ..vision_language.plan_projected import models_around, patches_of_owner
from .owner import GroupedImageModel, GroupedVideoModel

GROUPS = OutputAdapter(
    GroupedImageModel,
    description="whole groups of patches stay merged to the language model, whose placeholders follow",
)
GROUPS_AND_VIDEOS = OutputAdapter(
    GroupedVideoModel, description=f"{GROUPS.description}; of videos it gets every group"
)


def plan_groups(root: nn.Module, config: MergeConfig) -> list[Target]:
    """Plan merging for every packed tower in a model, and for the models around it.

    Raises:
        UnsupportedModelError: the groups of a tower do not stay together, or a model around it is not known to follow.
        ValueError: the config does not fit the model.
    """
    towers = chosen_towers(find_packed(root), config)
    return [_fed(root, plan_packed(path, module, family, config)) for path, module, family in towers]


def _fed(root: nn.Module, target: Target[PackedPlan]) -> Target:
    """Return the target with what follows it in the models around the tower, where there are any."""
    around = list(models_around(root, target.path))
    if target.config.restore or not around:
        return target
    path, owner = around[-1]
    connector = CONNECTORS.get(type(owner).__name__)
    if connector is None:
        raise UnsupportedModelError(
            f"`where='groups'` hands fewer image tokens to the language model, and {type(owner).__name__} is not "
            f"supported there: {not_projected(root)}. Use `where='tower'`, or `restore=True`, which gives every group "
            "back after the tower."
        )
    output = GROUPS_AND_VIDEOS if connector.videos else GROUPS
    patches = patches_of_owner(root, path, owner, output, target.config.where)
    check_forwards([change.module for change in patches])
    plan = replace(target.plan, outputs=(output.description,), feeds_language=True)
    return replace(target, plan=plan, patches=(*target.patches, *patches))

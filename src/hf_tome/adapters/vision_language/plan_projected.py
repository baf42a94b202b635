"""Plan merging behind the projectors of vision-language models. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn

from ...config import MergeConfig
from ...config.text import is_unmerged
from ...errors import UnsupportedModelError
from ...merging.methods import METHODS, Method
from ...patching.plans import NEXT_STEPS, Description, Patch, Plan, Target, check_forwards
from ...patching.recorder import PassSummary, Recorder
from ..encoders.families.family import OutputAdapter
from ..encoders.plan import patches_of
from .connectors import CONNECTORS
from .models import GENERATE, PROJECTED, PROJECTED_VIDEO, not_projected


@dataclass(frozen=True)
class ProjectedPlan(Plan):
    """What is decided for one model that projects image tokens; they merge as if in one block.

    Attributes:
        owner: class name of that model.
        method: the row of the config's method.
        schedule: the tokens of each image to merge, 0 where the images decide.
        merging: whether anything merges.
        outputs: what is done with the tokens, in words.
    """

    owner: str
    method: Method
    schedule: tuple[int, ...]
    merging: tuple[bool, ...]
    outputs: tuple[str, ...]

    def describe(self, module: Any, summary: PassSummary | None) -> Description:
        """See the base class."""
        return Description(self.owner, self.schedule, self.merging, blocks_run=1, outputs=self.outputs)


def plan_projected(root: nn.Module, config: MergeConfig) -> list[Target]:
    """Plan merging for every model inside `root` that projects image tokens.

    Raises:
        UnsupportedModelError: a model around one is not known.
    """
    return [_plan_owner(root, path, owner, config) for path, owner in find_owners(root)]


def why_not_projected(root: nn.Module) -> str:
    """Return why a model's projected tokens cannot be merged, what is supported and what to do."""
    return (
        f"`where='projected'` merges image tokens between projector and language model, and "
        f"{type(root).__name__} is not supported there: {not_projected(root)}. "
        f"Supported: {', '.join(CONNECTORS)}, and their models for generation. {NEXT_STEPS}"
    )


def find_owners(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and module of every model inside `root` that projects image tokens."""
    for path, module in root.named_modules():
        if type(module).__name__ in CONNECTORS and isinstance(module, transformers.PreTrainedModel):
            yield path, module


def _plan_owner(root: nn.Module, path: str, owner: nn.Module, config: MergeConfig) -> Target:
    connector, name = CONNECTORS[type(owner).__name__], type(owner).__name__
    output = PROJECTED_VIDEO if connector.videos else PROJECTED
    patches = patches_of_owner(root, path, owner, output, config.where)
    check_forwards([change.module for change in patches])
    plan = ProjectedPlan(
        config=config,
        owner=name,
        method=METHODS[config.method],
        schedule=config.schedule(1),
        merging=(not is_unmerged(config),),
        outputs=(output.description,),
    )
    return Target(path, owner, plan, Recorder(), tuple(patches))


def patches_of_owner(root: nn.Module, path: str, owner: nn.Module, output: OutputAdapter, where: str) -> list[Patch]:
    """Return how the model at `path` that makes image tokens is patched, and its model for generation around it.

    Raises:
        UnsupportedModelError: another model around it, whose head is not known to follow fewer tokens.
    """
    name, owned = type(owner).__name__, [(owner, output)]
    generator = name.removesuffix("Model") + "ForConditionalGeneration"
    for _, around in models_around(root, path):
        if type(around).__name__ != generator:
            raise UnsupportedModelError(
                f"{type(around).__name__} is not supported with `where={where!r}`: its head reads every image token "
                f"in its place, and is not known to follow fewer. Supported around {name}: {generator}. {NEXT_STEPS}"
            )
        owned += [(around, row) for row in GENERATE]
    return patches_of(owned)


def models_around(root: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and module of every model of transformers that holds the module at `path`, from the outermost in."""
    module, names = root, path.split(".") if path else []
    for depth, name in enumerate(names):
        if isinstance(module, transformers.PreTrainedModel):
            yield ".".join(names[:depth]), module
        module = getattr(module, name)

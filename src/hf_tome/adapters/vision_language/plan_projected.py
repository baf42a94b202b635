"""Plan merging behind the projectors of vision-language models. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator

import transformers
from torch import nn

from ...config import MergeConfig
from ...config.text import is_unmerged
from ...errors import UnsupportedModelError
from ...merging.methods import METHODS
from ...patching.plans import HOW_TO_GO_ON, Plan, check_forwards
from ...patching.recorder import Tower
from ..encoders.family import Family, zero
from ..encoders.outputs import sites_of
from .connectors import CONNECTORS
from .models import GENERATOR, PROJECTED, PROJECTED_VIDEO, not_projected


def plan_projected(root: nn.Module, config: MergeConfig) -> list[Plan]:
    """Plan merging for every model inside `root` that projects image tokens.

    Raises:
        UnsupportedModelError: there is none, or a model around one is not known.
    """
    plans = [_plan_owner(root, path, owner, config) for path, owner in _owners(root)]
    if not plans:
        raise UnsupportedModelError(
            f"`where='projected'` merges image tokens between projector and language model, and "
            f"{type(root).__name__} is not supported there: {not_projected(root)}. "
            f"Supported: {', '.join(CONNECTORS)}, and their models for generation. {HOW_TO_GO_ON}"
        )
    return plans


def _owners(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in root.named_modules():
        if type(module).__name__ in CONNECTORS and isinstance(module, transformers.PreTrainedModel):
            yield path, module


def _plan_owner(root: nn.Module, path: str, owner: nn.Module, config: MergeConfig) -> Plan:
    connector, name = CONNECTORS[type(owner).__name__], type(owner).__name__
    generator = name.removesuffix("Model") + "ForConditionalGeneration"
    head = PROJECTED_VIDEO if connector.videos else PROJECTED
    owned_heads = [(owner, head)]
    for around in _models_around(root, path):
        if type(around).__name__ != generator:
            raise UnsupportedModelError(
                f"{type(around).__name__} is not supported with `where='projected'`: its head reads every image token "
                f"in its place, and is not known to follow fewer. Supported around {name}: {generator}. {HOW_TO_GO_ON}"
            )
        owned_heads += [(around, generator_head) for generator_head in GENERATOR]
    sites = sites_of(owned_heads)
    check_forwards([site for site, _ in sites])
    tower = Tower(
        family=Family((), name, zero, {}),
        config=config,
        method=METHODS[config.method],
        schedule=config.schedule(1),
        merging=(not is_unmerged(config),),
        num_special=0,
        proportional=False,
        restore=False,
        path=path,
        heads=(head,),
    )
    return Plan(tower, [], [], sites)


def _models_around(root: nn.Module, path: str) -> Iterator[nn.Module]:
    module = root
    for name in path.split(".") if path else ():
        if isinstance(module, transformers.PreTrainedModel):
            yield module
        module = getattr(module, name)

"""`apply` and `remove`: switch merging on and off in a model that is already loaded."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from .adapters.attention import MergedAttention
from .adapters.encoder import MergedBlock
from .adapters.swap import LINK, is_swapped, swap, unswap
from .adapters.timm_vit import TimmAttention
from .adapters.towers import Plan, plan, unwrap
from .config import MergeConfig
from .state import Link, Tower

ModelT = TypeVar("ModelT")

ATTENTIONS: dict[str, type] = {"transformers": MergedAttention, "timm": TimmAttention}
"""What an attention module is swapped for, by the library that it is from."""


def apply(model: ModelT, config: MergeConfig) -> ModelT:
    """Merge tokens in every vision or audio tower of a model, in place.

    The blocks' classes are swapped for subclasses; parameters, state dict, config and the model's own class stay as
    they are. A second call replaces the first config.

    Args:
        model: a transformers model, or a pipeline, PEFT model or compiled model around one.
        config (`MergeConfig`): what to merge.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: the model, its head or its attention implementation cannot take merged tokens, for the
            reason that it says.
        ValueError: the config does not fit the model, e.g. a schedule longer than the model.
    """
    check_config(config)
    plans = plan(model, config)  # whatever can go wrong goes wrong here, before anything is touched
    remove(model)
    for new in plans:
        _attach(new)
    return model


def check_config(config: object, name: str = "config") -> None:
    """Raise a `TypeError` unless `config` is a `MergeConfig`; `name` is what the caller calls it."""
    if not isinstance(config, MergeConfig):
        raise TypeError(f"`{name}` is a {type(config).__name__}; it takes a MergeConfig, as in MergeConfig(r=16).")


def remove(model: ModelT) -> ModelT:
    """Give a model its own blocks back, in place: exactly the model it was before `apply`. Returns the same object."""
    for module in list(unwrap(model).modules()):
        if is_swapped(module):
            unswap(module)
    return model


def towers(model: object) -> list[Tower]:
    """Return the towers of a model in which tokens are merged, in the order of its modules."""
    found: dict[int, Tower] = {}
    for link in _links(unwrap(model)):
        found.setdefault(id(link.tower), link.tower)
    return list(found.values())


def _attach(planned: Plan) -> None:
    for index, (block, attention) in enumerate(zip(planned.blocks, planned.attentions)):
        swap(block, MergedBlock, Link(planned.tower, index))
        swap(attention, ATTENTIONS[planned.tower.family.library], Link(planned.tower, index))
    for site, mixin in planned.sites:
        if not is_swapped(site):  # Video-LLaVA's towers, one for images and one for videos, ask for the same
            swap(site, mixin, Link(planned.tower))


def _links(model: nn.Module) -> list[Link]:
    return [module.__dict__[LINK] for module in model.modules() if is_swapped(module)]

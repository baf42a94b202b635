"""`apply` and `remove`: switch merging on and off in a model that is already loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from .adapters.encoders.attention import MergedAttention
from .adapters.encoders.block import MergedBlock
from .adapters.encoders.plan import Plan, plan, unwrap
from .adapters.encoders.timm import TimmAttention
from .config import MergeConfig
from .patching.patch import LINK, PARTS, is_on_top, is_swapped, swap, unswap
from .patching.plans import forward_module
from .patching.recorder import Link, Tower

ModelT = TypeVar("ModelT")

PART_OF_MORE = (
    "`hf_tome.apply` was called on a larger model, which holds this tower as {path!r} and was changed too. Call "
    "`hf_tome.apply` and `hf_tome.remove` on that model."
)
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
    _check_root(unwrap(model))
    remove(model)
    for new in plans:
        _attach(new)
    return model


def check_config(config: object, name: str = "config") -> None:
    """Raise a `TypeError` unless `config` is a `MergeConfig`; `name` is what the caller calls it."""
    if not isinstance(config, MergeConfig):
        raise TypeError(f"`{name}` is a {type(config).__name__}; it takes a MergeConfig, as in MergeConfig(r=16).")


def remove(model: ModelT) -> ModelT:
    """Give a model its own blocks back, in place: exactly the model it was before `apply`.

    Returns:
        The same object.

    Raises:
        RuntimeError: only part of what `apply` changed is in this model, or something else has changed it since.
    """
    swapped = _swapped_modules(unwrap(model))
    _check_removable(swapped)
    for module in swapped:
        unswap(module)
    return model


@contextmanager
def merged(model: ModelT, config: MergeConfig) -> Iterator[ModelT]:
    """Merge tokens within a `with` block; afterwards the model is as it was, with the merge that it had, if any.

    Raises:
        As `apply`.
    """
    root = unwrap(model)
    # The same objects come back, so that `report` and `trace` still show the last pass of the earlier merge.
    earlier = [(module, getattr(type(module), PARTS)[0], module.__dict__[LINK]) for module in _swapped_modules(root)]
    apply(model, config)
    try:
        yield model
    finally:
        remove(model)
        for module, mixin, link in earlier:
            swap(module, mixin, link)


def towers(model: object) -> list[Tower]:
    """Return the towers of a model in which tokens are merged, in the order of its modules."""
    found: dict[int, Tower] = {}
    for link in _links(unwrap(model)):
        found.setdefault(id(link.tower), link.tower)
    return list(found.values())


def _attach(planned: Plan) -> None:
    tower, mixin = planned.tower, ATTENTIONS[planned.tower.family.library]
    for index, (block, attention) in enumerate(zip(planned.blocks, planned.attentions)):
        swap(block, MergedBlock, Link(tower, index))
        swap(attention, mixin, Link(tower, index, forward_module(attention)))
    # Video-LLaVA's towers, one for images and one for videos, ask for the same site.
    sites = [(site, mixin) for site, mixin in planned.sites if not is_swapped(site)]
    for site, mixin in sites:
        swap(site, mixin, Link(tower))
    tower.num_swapped = 2 * len(planned.blocks) + len(sites)


def _check_removable(swapped: Sequence[nn.Module]) -> None:
    for module in swapped:
        if not is_on_top(module):
            raise RuntimeError(
                f"The class of a {type(module).__name__} has been changed again since `hf_tome.apply`, as FSDP and "
                "parametrizations do, so merging cannot be taken out of it. Undo that first."
            )
    found = Counter(id(module.__dict__[LINK].tower) for module in swapped)
    for tower in {id(module.__dict__[LINK].tower): module.__dict__[LINK].tower for module in swapped}.values():
        if found[id(tower)] < tower.num_swapped:
            raise RuntimeError(PART_OF_MORE.format(path=tower.path))


def _check_root(root: nn.Module) -> None:
    """Raise where blocks were merged as part of a larger model, whose head would not know of another config."""
    for name, module in root.named_modules():
        link = module.__dict__.get(LINK)
        if link is not None and link.index >= 0 and not f".{name}".startswith(f".{link.tower.path}"):
            raise RuntimeError(PART_OF_MORE.format(path=link.tower.path))


def _links(model: nn.Module) -> list[Link]:
    return [module.__dict__[LINK] for module in _swapped_modules(model)]


def _swapped_modules(root: nn.Module) -> list[nn.Module]:
    return [module for module in root.modules() if is_swapped(module)]

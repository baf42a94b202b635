"""Find the towers in a model, and plan what merging does to each. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn
from transformers import Pipeline, PreTrainedModel

from ..config import MergeConfig
from ..errors import UnsupportedModelError
from ..state import Tower
from .attention import check_backend
from .families import TOWERS, WRAPPERS
from .heads import HEADS, site_of
from .matching import METHODS
from .refused import REFUSED
from .spec import Family, Head

HOW_TO_GO_ON = (
    "See docs/models.md for what is supported; a plain encoder inside a model of your own can be merged by itself, "
    "as in `hf_tome.apply(model.encoder, config)`."
)


@dataclass(frozen=True)
class Plan:
    """What is to be swapped for one tower."""

    tower: Tower
    blocks: list[nn.Module]
    attentions: list[nn.Module]
    sites: list[tuple[nn.Module, type]]


def unwrap(model: Any) -> Any:
    """Return the transformers model inside a pipeline, a compiled model, a PEFT model or a parallel wrapper.

    Raises:
        TypeError: it is no model at all.
    """
    if isinstance(model, Pipeline):
        model = model.model
    while isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel):
        if "_orig_mod" in model._modules:  # torch.compile
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):  # peft
            model = model.get_base_model()  # type: ignore[operator]
        elif type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            model = model.module
        else:
            break
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` is a {type(model).__name__}; it takes a transformers model or pipeline.")
    return model


def plan(model: Any, config: MergeConfig) -> list[Plan]:
    """Plan merging for every tower of a model.

    Raises:
        UnsupportedModelError: no tower that can merge, a head that cannot take merged tokens, or an attention
            implementation that cannot weigh them.
        ValueError: the config does not fit the model.
    """
    root = unwrap(model)
    plans = [_plan_tower(root, path, tower, family, config) for path, tower, family in _towers(root)]
    if not plans:
        raise UnsupportedModelError(_why_not(root))
    return plans


def _towers(root: nn.Module) -> Iterator[tuple[str, nn.Module, Family]]:
    for path, module in root.named_modules():
        family = TOWERS.get(type(module).__name__)
        if family is not None and isinstance(module, PreTrainedModel):
            yield path, module, family


def _plan_tower(root: nn.Module, path: str, module: nn.Module, family: Family, config: MergeConfig) -> Plan:
    owned_heads = list(_heads(root, path, family))
    blocks = list(attrgetter(family.layers)(module))
    attentions = [attrgetter(family.attention)(block) for block in blocks]
    check_backend(module.config._attn_implementation)  # type: ignore[union-attr, arg-type]
    method, num_layers = METHODS[config.method], len(blocks)
    schedule, layers = config.schedule(num_layers), set(config.merging_layers(num_layers))
    needs_grid = any(head.kind == "restore" for _, head in owned_heads)
    if needs_grid and method.prunes:
        raise UnsupportedModelError(
            f"{type(root).__name__} needs every token after the last block, and method {config.method!r} drops tokens "
            f"for "
            "good. Use a method that merges, such as 'tome'."
        )
    proportional = config.proportional_attention
    tower = Tower(
        family=family,
        config=config,
        schedule=schedule,
        merging=tuple(schedule[i] > 0 if config.method != "mame" else i in layers for i in range(num_layers)),
        num_special=family.num_special(module),
        proportional=method.proportional and family.proportional if proportional == "auto" else bool(proportional),
        restore=config.restore or needs_grid,
        path=path,
        heads=tuple(head for _, head in owned_heads),
    )
    # A grid that is restored is averaged as ever.
    sites = [] if tower.restore else [_site(owner, head) for owner, head in owned_heads]
    found = [site for site in sites if site is not None]
    _check_forwards([*blocks, *attentions, *(site for site, _ in found)])
    return Plan(tower, blocks, attentions, found)


def _heads(root: nn.Module, path: str, family: Family) -> Iterator[tuple[nn.Module, Head]]:
    """Yield the heads of the tower and of every model around it, each with the model that owns it.

    Raises:
        UnsupportedModelError: a model around the tower that is refused, or not known.
    """
    names = path.split(".") if path else []
    owners = [root]
    for name in names:
        owners.append(getattr(owners[-1], name))
    for owner in owners:
        if owner is not root and not isinstance(owner, PreTrainedModel):
            continue
        name = type(owner).__name__
        heads = family.heads.get(name, WRAPPERS.get(name))
        if heads is None:
            reason = REFUSED.get(getattr(getattr(owner, "config", None), "model_type", ""), "its head is not known")
            known = ", ".join(head for head, row in family.heads.items() if not isinstance(row, str))
            raise UnsupportedModelError(
                f"{name} holds a {family.tower}, in which tokens can be merged, but {name} itself is not supported: "
                f"{reason}. Supported around this tower: {known}, {', '.join(WRAPPERS)}. {HOW_TO_GO_ON}"
            )
        if isinstance(heads, str):
            raise UnsupportedModelError(f"{name} is not supported: {heads}. {HOW_TO_GO_ON}")
        for head in heads:
            if head.kind != "tokens" or owner is root:  # a model around the tower takes them
                yield owner, head


def _site(owner: nn.Module, head: Head) -> tuple[nn.Module, type] | None:
    mixin = HEADS[head.kind]
    site = site_of(owner, head.site) if mixin is not None else None
    return None if site is None or mixin is None else (site, mixin)


def _check_forwards(modules: list[nn.Module]) -> None:
    """Raise where an instance has a forward of its own, which would run instead of ours, silently."""
    for module in modules:
        if "forward" in module.__dict__:
            by = "accelerate's hooks" if hasattr(module, "_hf_hook") else "something else"
            raise UnsupportedModelError(
                f"The forward of a {type(module).__name__} has been replaced by {by}, so merging in it would do "
                f"nothing. Call "
                "`hf_tome.apply` first and dispatch, offload or wrap the model after it, or load it on one device."
            )


def _why_not(root: nn.Module) -> str:
    model_type = getattr(getattr(root, "config", None), "model_type", None)
    found = f"Found no encoder to merge tokens in: {type(root).__name__}"
    if model_type is not None:
        found += f" (model type {model_type!r})"
    reason = REFUSED.get(model_type or "")
    if reason:
        return f"{found} is not supported, because {reason}. {HOW_TO_GO_ON}"
    return f"{found} holds none of the supported {', '.join(sorted(TOWERS))}. {HOW_TO_GO_ON}"

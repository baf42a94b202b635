"""Find the towers in a model, and plan what merging does to each. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import transformers  # whose heavy classes are imported where they are used: importing hf_tome stays quick
from torch import nn

from ...config import MergeConfig
from ...errors import UnsupportedModelError
from ...merging.methods import METHODS
from ...patching.plans import HOW_TO_GO_ON, Plan, check_blocks, check_forwards
from ...patching.recorder import Tower
from ..vision_language.connectors import CONNECTORS
from ..vision_language.features import IMAGE_FEATURES, check_reads, cropped_tokens, has_feature_layers, read_layers
from ..vision_language.models import VISION_LANGUAGE
from ..vision_language.plan_projected import plan_projected
from .attention import backend_of, check_backend
from .families import TOWERS, WRAPPERS
from .family import Family, Head
from .outputs import sites_of
from .timm import TIMM_TOWERS, check_timm, is_timm
from .unsupported import why_unsupported


def unwrap(model: Any) -> Any:
    """Return the transformers model inside a pipeline, a compiled model, a PEFT model or a parallel wrapper.

    Raises:
        TypeError: it is no model at all.
    """
    if isinstance(model, transformers.Pipeline):
        model = model.model
    while isinstance(model, nn.Module) and not isinstance(model, transformers.PreTrainedModel):
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
    if config.where == "projected":
        return plan_projected(root, config)
    config.at("tower")  # a field that means nothing there is refused
    plans = [_plan_tower(root, path, tower, family, config) for path, tower, family in _towers(root)]
    if not plans:
        raise UnsupportedModelError(_why_not(root))
    return plans


def _towers(root: nn.Module) -> Iterator[tuple[str, nn.Module, Family]]:
    for path, module in root.named_modules():
        rows = TIMM_TOWERS if is_timm(module) else TOWERS if isinstance(module, transformers.PreTrainedModel) else {}
        family = rows.get(type(module).__name__)
        if family is not None:
            yield path, module, family


def _plan_tower(root: nn.Module, path: str, module: nn.Module, family: Family, config: MergeConfig) -> Plan:
    owned_heads = list(_heads(root, path, family))
    if family.library == "timm":
        check_timm(module)
    blocks = list(attrgetter(family.layers)(module))
    check_blocks(blocks, family.library)
    check_backend(backend_of(module))
    merging = config.merging_blocks(len(blocks))
    restore = _restores(root, owned_heads, config)
    readers = [owner for owner, head in owned_heads if has_feature_layers(owner) or head.kind == IMAGE_FEATURES]
    reads = read_layers(readers[0], len(blocks)) if readers else ()
    check_reads(type(root).__name__, reads, merging, restore)
    if restore and reads:
        blocks = blocks[: max(min(reads), 1)]  # the grid is back from there on, and the blocks behind stay as they are
    attentions = [attrgetter(family.attention)(block) for block in blocks]
    check_blocks(attentions, family.library)
    cropped = max((cropped_tokens(owner) for owner, head in owned_heads if head.kind == IMAGE_FEATURES), default=0)
    tower = Tower(
        family=family,
        config=config,
        method=METHODS[config.method],
        schedule=config.schedule(len(merging))[: len(blocks)],
        merging=merging[: len(blocks)],
        num_special=max(family.num_protected(getattr(module, "config", None), module), cropped),
        proportional=_weighs_attention(config, family),
        restore=restore,
        reads=reads,
        path=path,
        heads=tuple(head for owner, head in owned_heads if owner is not module or not reads),
    )
    # A grid that is restored is averaged, and laid out, as ever.
    sites = sites_of([(owner, head) for owner, head in owned_heads if head.on_grid or not restore])
    if family.library == "timm" and all(site is not module for site, _ in sites):
        raise UnsupportedModelError(
            f"{type(root).__name__} reads the tokens of several blocks on the full grid (`features_only`), and merged "
            f"tokens have no grid. {HOW_TO_GO_ON}"
        )
    check_forwards([*blocks, *attentions, *(site for site, _ in sites)])
    return Plan(tower, blocks, attentions, sites)


def _restores(root: nn.Module, owned_heads: list[tuple[nn.Module, Head]], config: MergeConfig) -> bool:
    """Return whether the full grid is given back, because of the config or of a head."""
    needs_grid = any(head.kind == "restore" for _, head in owned_heads)
    if needs_grid and METHODS[config.method].drops_tokens:
        raise UnsupportedModelError(
            f"{type(root).__name__} needs every token after the last block, and method {config.method!r} drops tokens "
            "for good. Use a method that merges, such as 'tome'."
        )
    return config.restore or needs_grid


def _weighs_attention(config: MergeConfig, family: Family) -> bool:
    chosen = config.proportional_attention
    return METHODS[config.method].proportional and family.proportional if chosen == "auto" else bool(chosen)


def _heads(root: nn.Module, path: str, family: Family) -> Iterator[tuple[nn.Module, Head]]:
    """Yield the heads of the tower and of every model around it, each with the model that owns it.

    Raises:
        UnsupportedModelError: a model around the tower that is unsupported, or not known.
    """
    names = path.split(".") if path else []
    owners = [root]
    for name in names:
        owners.append(getattr(owners[-1], name))
    for owner in owners:
        if owner is not root and not isinstance(owner, transformers.PreTrainedModel):
            continue
        name = type(owner).__name__
        heads = family.heads.get(name, WRAPPERS.get(name))
        if heads is None:
            model_type = getattr(getattr(owner, "config", None), "model_type", None)
            reason = why_unsupported(model_type) or "its head is not known"
            rows = {**family.heads, **{known: row for known, row in WRAPPERS.items() if known not in VISION_LANGUAGE}}
            known = ", ".join(known for known, row in rows.items() if not isinstance(row, str))
            raise UnsupportedModelError(
                f"{name} holds a {family.tower}, in which tokens can be merged, but {name} itself is not supported: "
                f"{reason}. Supported around this tower: {known}, and vision-language models. {HOW_TO_GO_ON}"
            )
        if isinstance(heads, str):
            raise UnsupportedModelError(f"{name} is not supported: {heads}. {HOW_TO_GO_ON}")
        for head in heads:
            if head.kind != "tokens" or owner is root:  # a model around the tower takes them
                yield owner, head


def _why_not(root: nn.Module) -> str:
    model_type = getattr(getattr(root, "config", None), "model_type", None)
    found = f"Found no encoder to merge tokens in: {type(root).__name__}"
    if model_type is not None:
        found += f" (model type {model_type!r})"
    how = HOW_TO_GO_ON
    if any(type(module).__name__ in CONNECTORS for module in root.modules()):
        how = f"Its projected image tokens can be merged: `MergeConfig(..., where='projected')`. {how}"
    reason = why_unsupported(model_type)
    if reason is not None:
        return f"{found} is not supported, because {reason}. {how}"
    tower_type = getattr(getattr(root.config, "vision_config", None), "model_type", None) if model_type else None
    reason = why_unsupported(tower_type)
    if reason is not None:
        return f"{found} is not supported around a tower of type {tower_type!r}: {reason}. {how}"
    return f"{found} holds none of the supported {', '.join(sorted(TOWERS))}. {how}"

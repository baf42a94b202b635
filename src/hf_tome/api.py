"""`apply`, `remove` and `merged`: switch merging on and off in a model that is already loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from .adapters.adapter import Adapter
from .adapters.dense.adapter import DenseAdapter
from .adapters.dense.packed.adapter import PackedTowerAdapter
from .adapters.dense.sam.adapter import WindowTowerAdapter
from .adapters.diffusion.adapter import DiffusionAdapter
from .adapters.encoders.adapter import EncodersAdapter
from .adapters.groups.adapter import GroupsAdapter
from .adapters.kv_cache.adapter import CacheAdapter
from .adapters.vision_language.adapter import ProjectedAdapter, VisionTowerAdapter
from .config import MergeConfig
from .errors import UnsupportedModelError
from .patching.patch import context_of, is_patched, is_topmost, mixin_of, patch, unpatch
from .patching.plans import Target, attach, check_patches
from .patching.unwrap import unwrap

ModelT = TypeVar("ModelT")

ADAPTERS: tuple[Adapter, ...] = (
    ProjectedAdapter(),
    GroupsAdapter(),
    DiffusionAdapter(),
    CacheAdapter(),
    VisionTowerAdapter(),
    PackedTowerAdapter(),
    WindowTowerAdapter(),
    DenseAdapter(),
    EncodersAdapter(),
)
"""Where merging fits. The first that serves the config's place, and finds something in the model, plans; the reason
why nothing is found is that of the first that gives one. Encoders, which give one for any model, come last."""
AUTO = ("tower", "denoiser")
"""The places of `where="auto"`."""

PART_OF_MORE = (
    "`hf_tome.apply` was called on a larger model, which holds this tower as {path!r} and was changed too. Call "
    "`hf_tome.apply` and `hf_tome.remove` on that model."
)


def apply(model: ModelT, config: MergeConfig | None = None, **fields: Any) -> ModelT:
    """Merge tokens in every vision or audio tower of a model, in place.

    The blocks' classes are changed to subclasses; parameters, state dict, config and the model's own class stay as
    they are. A second call replaces the first config.

    Args:
        model: a transformers model, or a pipeline, PEFT model or compiled model around one.
        config (`MergeConfig`, *optional*): what to merge.
        fields: those of a `MergeConfig`, instead of `config`: `apply(model, r=8)`.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: the model, its head or its attention implementation cannot take merged tokens, for the
            reason that it says.
        ValueError: the config does not fit the model, e.g. a schedule longer than the model.
    """
    # Whatever can go wrong goes wrong in planning, before anything is touched.
    return replace_targets(model, plan_targets(model, _config_from(config, fields)))


def plan_targets(model: object, config: MergeConfig) -> list[Target]:
    """Return what `apply` would do to a model; nothing is touched.

    Raises:
        UnsupportedModelError, ValueError: as in `apply`.
    """
    root = unwrap(model)
    places = AUTO if config.where == "auto" else (config.where,)
    serving = [adapter for adapter in ADAPTERS if not set(places).isdisjoint(adapter.places)]
    for adapter in serving:
        if adapter.finds(root):
            config.at(next(place for place in places if place in adapter.places))  # else a field means nothing there
            planned = adapter.plan(root, config)
            check_patches(planned)
            return planned
    reasons = (reason for adapter in serving if (reason := adapter.reason(root)))
    supported = ", ".join(repr(place) for adapter in ADAPTERS for place in adapter.places)
    default = (
        f"Nothing merges with `where={config.where!r}` in a {type(root).__name__}; `where` takes {supported} here."
    )
    raise UnsupportedModelError(next(reasons, default))


def replace_targets(model: ModelT, planned: Sequence[Target]) -> ModelT:
    """Patch a model as planned, in place of what was merged in it before; returns the same object."""
    _check_root(unwrap(model))
    remove(model)
    for target in planned:
        attach(target)
    return model


def remove(model: ModelT) -> ModelT:
    """Give a model its own blocks back, in place: exactly the model it was before `apply`.

    Returns:
        The same object.

    Raises:
        RuntimeError: only part of what `apply` changed is in this model, or something else has changed it since.
    """
    root = unwrap(model)
    patched = _patched(root)
    _check_removable(root, patched)
    for module in patched:
        unpatch(module)
    return model


@contextmanager
def merged(model: ModelT, config: MergeConfig | None = None, **fields: Any) -> Iterator[ModelT]:
    """Merge tokens within a `with` block, and restore the earlier state afterwards, also after an exception.

    Args:
        model, config, fields: as in `apply`.

    Raises:
        UnsupportedModelError, ValueError: as in `apply`; the model is as it was.
    """
    root = unwrap(model)
    before = [(module, mixin_of(module), context_of(module)) for module in _patched(root)]
    apply(model, config, **fields)
    try:
        yield model
    finally:
        remove(model)
        for module, mixin, context in before:
            patch(module, mixin, context)


def is_merged(model: object) -> bool:
    """Return whether `apply` was called on a model, or on a part of it."""
    return bool(targets(model))


def get_config(model: object) -> MergeConfig | None:
    """Return the config that `apply` was called with; `None` where nothing merges, the first of several."""
    merge_targets = targets(model)
    return merge_targets[0].config if merge_targets else None


def targets(model: object) -> list[Target]:
    """Return where in a model tokens merge, in the order of its modules."""
    by_module: dict[int, Target] = {}
    for module in _patched(unwrap(model)):
        target = context_of(module).target
        by_module.setdefault(id(target), target)
    return list(by_module.values())


def check_config(config: object, name: str = "config") -> None:
    """Raise a `TypeError` unless `config` is a `MergeConfig`; `name` is what the caller calls it."""
    if not isinstance(config, MergeConfig):
        raise TypeError(f"`{name}` is a {type(config).__name__}; it takes a MergeConfig, as in MergeConfig(r=16).")


def _config_from(config: MergeConfig | None, fields: dict[str, Any]) -> MergeConfig:
    if config is None and fields:
        return MergeConfig.from_dict(fields)
    check_config(config)
    if fields:
        raise TypeError(
            f"There are both a `config` and {', '.join(map(repr, fields))}; pass one MergeConfig, or its fields alone."
        )
    return config  # type: ignore[return-value]


def _patched(root: nn.Module) -> list[nn.Module]:
    return [module for module in root.modules() if is_patched(module)]


def _check_removable(root: nn.Module, patched: Sequence[nn.Module]) -> None:
    for module in patched:
        if not is_topmost(module):
            raise RuntimeError(
                f"The class of a {type(module).__name__} has been changed again since `hf_tome.apply`, as FSDP and "
                "parametrizations do, so merging cannot be taken out of it. Undo that first."
            )
    inside_root = set(map(id, root.modules()))
    for target in targets(root):
        inside_tower = set(map(id, target.module.modules()))
        own = [id(module) in inside_tower for module in patched if context_of(module).target is target]
        # Blocks may have been cut out of the tower since; but what was patched around it has to be here.
        is_whole = own.count(False) == target.num_around and (id(target.module) in inside_root or not any(own))
        if len(own) < target.num_patches and not is_whole:
            raise RuntimeError(PART_OF_MORE.format(path=target.path))


def _check_root(root: nn.Module) -> None:
    """Raise where blocks were merged as part of a larger model, whose head would not know of another config."""
    for target in targets(root):
        if not any(_is_at(module, target.path, target.module) for module in root.modules()):
            raise RuntimeError(PART_OF_MORE.format(path=target.path))


def _is_at(root: nn.Module, path: str, module: nn.Module) -> bool:
    """Return whether `module` is at a dotted path of `root`, or wrapped there."""
    try:
        submodule = root.get_submodule(path)
    except AttributeError:
        return False
    return any(inner is module for inner in submodule.modules())

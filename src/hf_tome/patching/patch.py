"""Change the class of a module instance to a subclass, and back.

The instance keeps its parameters, buffers, hooks and name, so state dicts, devices and wrappers see nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from .plans import MergeContext

CONTEXT = "_hf_tome"
"""Attribute of a patched module that holds its `MergeContext`."""
PATCHED_FROM = "_hf_tome_patched_from"
"""Attribute of the classes made here: the mixin, and the module's own class."""

# The classes made here inherit the rest from the module's own class, of which a type checker cannot know.
_Module: Any = object


class PatchedModule(_Module):
    """Base of all mixins; it pickles instances, whose class no Python module holds by name."""

    reads_sizes: bool = False
    """Whether the mixin reads the sizes of a pass after its last block (see `Recorder.reader`)."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Build a plain module where one is built from a config, as in `type(model).from_pretrained(...)`."""
        return getattr(cls, PATCHED_FROM)[1](*args, **kwargs) if args or kwargs else super().__new__(cls)

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _rebuild, getattr(type(self), PATCHED_FROM), self.__dict__


class PatchedModel(PatchedModule):
    """Base of mixins for whole models: transformers inspects signatures, so the methods keep the model's own."""

    methods: tuple[str, ...] = ()
    """The methods that the mixin overrides."""


def patch(module: nn.Module, mixin: type, context: MergeContext) -> None:
    """Give `module` the behaviour of `mixin`, and the context that it reads."""
    # Not a module or parameter, so this bypasses nn.Module's registration on purpose.
    module.__dict__[CONTEXT] = context
    base: Any = type(module)
    _change_class(module, patched_class(mixin, base))


def unpatch(module: nn.Module) -> None:
    """Give `module` its own class back; the inverse of `patch`."""
    _change_class(module, own_class(module))
    module.__dict__.pop(CONTEXT, None)


def is_patched(module: object) -> bool:
    """Return whether `module` has a class made by `patch`."""
    return isinstance(module, PatchedModule)


def is_topmost(module: nn.Module) -> bool:
    """Return whether the class is exactly the patched class (not subclassed again, e.g. by FSDP)."""
    return PATCHED_FROM in vars(type(module))


def own_class(module: nn.Module) -> Any:
    """Return the class that a module has without a patch."""
    return getattr(type(module), PATCHED_FROM, (None, type(module)))[1]


def mixin_of(module: nn.Module) -> Any:
    """Return the mixin that a module is patched with, or `None`."""
    return getattr(type(module), PATCHED_FROM, (None, None))[0]


def context_of(module: Any) -> MergeContext:
    """Return the context of a patched module."""
    return getattr(module, CONTEXT)


def is_forward_kept(module: nn.Module) -> bool:
    """Return whether a forward that was set on the instance still runs that of its class, as hooks' does."""
    return "forward" not in module.__dict__ or bool(_kept_forwards(module))


def _kept_forwards(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Return where the module's own forward is kept as a bound method: a dictionary, and the key in it.

    accelerate's hooks keep it on the module, those of diffusers in their registry, and a hook of either that is taken
    away again leaves it on the instance.
    """
    registry = module.__dict__.get("_diffusers_hook")
    references = [vars(reference) for reference in getattr(registry, "_fn_refs", ())]
    places = [(module.__dict__, "forward"), (module.__dict__, "_old_forward")]
    places += [(reference, key) for reference in references for key in ("forward", "original_forward")]
    own = {vars(cls).get("forward") for cls in type(module).__mro__}
    return [
        (kept, key)
        for kept, key in places
        if isinstance(kept.get(key), MethodType) and kept[key].__self__ is module and kept[key].__func__ in own
    ]


def _change_class(module: nn.Module, cls: Any) -> None:
    """Change the class of a module, and let hooks that keep a module's forward run that of its new class."""
    kept_forwards = _kept_forwards(module)
    module.__class__ = cls
    for kept, key in kept_forwards:
        kept[key] = MethodType(type(module).forward, module)


@functools.cache
def patched_class(mixin: Any, base: Any) -> type:
    """Return the class that `patch` gives a module of class `base`."""
    # The name stays: device maps, FSDP policies and printed models go by it. GradientCheckpointingLayer wraps the
    # forward of every new subclass, so the mixin's is checkpointed as the original is.
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    names[PATCHED_FROM] = mixin, base
    for name in getattr(mixin, "methods", ()):
        names[name] = _with_signature(getattr(mixin, name), getattr(base, name))
    return type(base.__name__, (mixin, base), names)


def _with_signature(method: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(like)
    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return patched


def _rebuild(mixin: type, base: type) -> nn.Module:
    subclass = patched_class(mixin, base)
    return subclass.__new__(subclass)  # type: ignore[call-overload]

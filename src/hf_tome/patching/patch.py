"""Swap the class of a module instance for a subclass, and back.

The instance keeps its parameters, buffers, hooks and name, so state dicts, devices and wrappers see nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

from .recorder import Link

LINK = "_hf_tome"
PARTS = "_hf_tome_parts"
"""Attribute of the classes made here: the mixin, and the module's own class."""

# The classes made here inherit the rest from the module's own class, of which a type checker cannot know.
_Module: Any = object


class Swapped(_Module):
    """Marks the classes made here, and pickles their instances, whose class no module holds by name."""

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _rebuild, getattr(type(self), PARTS), self.__dict__


class StandIn(Swapped):
    """Marks those that stand in for whole models: transformers asks for signatures, so they are the model's own."""

    methods: tuple[str, ...] = ()
    """What is overridden."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Build a plain model where one is built from a config, as in `type(model).from_pretrained(...)`."""
        return getattr(cls, PARTS)[1](*args, **kwargs) if args or kwargs else super().__new__(cls)


def swap(module: nn.Module, mixin: type, link: Link) -> None:
    """Give `module` the behaviour of `mixin`, and the link that it reads."""
    base: Any = type(module)
    module.__class__ = _subclass(mixin, base)
    # Not a module or parameter, so this bypasses nn.Module's registration on purpose.
    module.__dict__[LINK] = link
    _rebind(module)


def unswap(module: nn.Module) -> None:
    """Give `module` its own class back; the inverse of `swap`."""
    module.__class__ = own_class(module)
    module.__dict__.pop(LINK, None)
    _rebind(module)


def is_swapped(module: nn.Module) -> bool:
    """Return whether `module` carries a class made by `swap`."""
    return isinstance(module, Swapped)


def is_on_top(module: nn.Module) -> bool:
    """Return whether a swapped module's class is still the one that `swap` made, not one that was made of it since."""
    return PARTS in vars(type(module))


def own_class(module: nn.Module) -> Any:
    """Return the class that a module had before it was swapped, if it was."""
    return getattr(type(module), PARTS, (None, type(module)))[1]


def hooked_forward(module: nn.Module) -> MethodType | None:
    """Return the forward that accelerate's hooks run in place of a module's own, if that is the module's method."""
    forward = module.__dict__.get("_old_forward") if hasattr(module, "_hf_hook") else None
    return forward if isinstance(forward, MethodType) and forward.__self__ is module else None


def _rebind(module: nn.Module) -> None:
    """Let accelerate's hooks, which keep a module's forward, run that of its present class."""
    if hooked_forward(module) is not None:
        module.__dict__["_old_forward"] = MethodType(type(module).forward, module)


@functools.cache
def _subclass(mixin: Any, base: Any) -> type:
    # The name stays: device maps, FSDP policies and printed models go by it. GradientCheckpointingLayer wraps the
    # forward of every new subclass, so the mixin's is checkpointed as the original is.
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    names[PARTS] = mixin, base
    for name in getattr(mixin, "methods", ()):
        names[name] = _with_signature(getattr(mixin, name), getattr(base, name))
    return type(base.__name__, (mixin, base), names)


def _with_signature(method: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(like)
    def standing_in(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return standing_in


def _rebuild(mixin: type, base: type) -> nn.Module:
    subclass = _subclass(mixin, base)
    return subclass.__new__(subclass)  # type: ignore[call-overload]

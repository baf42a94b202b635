"""Swap the class of a module instance for a subclass, and back.

The instance keeps its parameters, buffers, hooks and name, so state dicts, devices and wrappers see nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from ..state import Link

LINK = "_hf_tome"


# The classes made here inherit the rest from the module's own class, of which a type checker cannot know.
_Module: Any = object


class Swapped(_Module):
    """Marks the classes made here, and pickles their instances, whose class no module holds by name."""

    def __reduce_ex__(self, protocol: Any) -> tuple:
        mixin, base = type(self).__bases__
        return _rebuild, (mixin, base), self.__dict__


class StandIn(Swapped):
    """Marks those that stand in for whole models: transformers asks for signatures, so they are the model's own."""

    methods: tuple[str, ...] = ()
    """What is overridden."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if len(cls.__bases__) == 2:  # made by `swap`
            mixin, base = cls.__bases__
            for name in cls.methods:
                setattr(cls, name, _with_signature(getattr(mixin, name), getattr(base, name)))

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Build a plain model where one is built from a config, as in `type(model).from_pretrained(...)`."""
        return cls.__bases__[1](*args, **kwargs) if args or kwargs else super().__new__(cls)


def _with_signature(method: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(like)
    def standing_in(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return standing_in


def swap(module: nn.Module, mixin: type, link: Link) -> None:
    """Give `module` the behaviour of `mixin`, and the link that it reads."""
    base: Any = type(module)
    module.__class__ = _subclass(mixin, base)
    # Not a module or parameter, so this bypasses nn.Module's registration on purpose.
    module.__dict__[LINK] = link


def unswap(module: nn.Module) -> None:
    """Give `module` its own class back; the inverse of `swap`."""
    module.__class__ = type(module).__bases__[1]
    module.__dict__.pop(LINK, None)


def is_swapped(module: nn.Module) -> bool:
    """Return whether `module` carries a class made by `swap`."""
    return isinstance(module, Swapped)


@functools.cache
def _subclass(mixin: Any, base: Any) -> type:
    # The name stays: device maps, FSDP policies and printed models go by it. GradientCheckpointingLayer wraps the
    # forward of every new subclass, so the mixin's is checkpointed as the original is.
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (mixin, base), names)


def _rebuild(mixin: type, base: type) -> nn.Module:
    subclass = _subclass(mixin, base)
    return subclass.__new__(subclass)  # type: ignore[call-overload]

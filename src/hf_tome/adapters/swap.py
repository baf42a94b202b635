"""Swap the class of a module instance for a subclass, and back.

The instance keeps its parameters, buffers, hooks and name, so state dicts, devices and wrappers see nothing.
"""

from __future__ import annotations

from functools import cache
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


@cache
def _subclass(mixin: Any, base: Any) -> type:
    # The name stays: device maps, FSDP policies and printed models go by it. GradientCheckpointingLayer wraps the
    # forward of every new subclass, so the mixin's is checkpointed as the original is.
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (mixin, base), names)


def _rebuild(mixin: type, base: type) -> nn.Module:
    subclass = _subclass(mixin, base)
    return subclass.__new__(subclass)  # type: ignore[call-overload]

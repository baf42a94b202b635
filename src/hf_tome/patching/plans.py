"""What is to be swapped for one tower, and what stands in the way of it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..errors import UnsupportedModelError
from .patch import hooked_forward, own_class
from .recorder import Tower

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


def check_forwards(modules: Sequence[nn.Module]) -> None:
    """Raise where an instance has a forward of its own, which would run instead of ours, silently.

    That of accelerate's hooks is none: it runs the module's, which is swapped in it as well.
    """
    for module in modules:
        if "forward" in module.__dict__ and hooked_forward(module) is None:
            raise UnsupportedModelError(
                f"The forward of a {type(module).__name__} has been replaced on the instance, so merging in it would "
                "do nothing. Call `hf_tome.apply` first, and wrap the model after it."
            )


def check_blocks(blocks: Sequence[nn.Module], library: str) -> None:
    """Raise where blocks, or attentions, are used twice, or not the library's, for whose forwards ours stand in."""
    for module in blocks:
        origin = forward_module(module)
        if not origin.startswith(f"{library}."):
            raise UnsupportedModelError(
                f"The forward of a {type(module).__name__} is defined in {origin}, not in {library}, and merging "
                f"would run {library}'s in its place. Supported are blocks as {library} defines them."
            )
    if len(set(map(id, blocks))) < len(blocks):
        raise UnsupportedModelError(
            f"The same {type(blocks[0]).__name__} is used in several layers, and each layer's merging has to remember "
            "its own tokens. Give every layer a block of its own, as `copy.deepcopy` makes it; weights may be shared."
        )


def forward_module(module: nn.Module) -> str:
    """Return the name of the Python module in which the forward of a module's own class is defined."""
    return inspect.unwrap(own_class(module).forward).__module__

"""What is to be swapped for one tower, and what stands in the way of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..errors import UnsupportedModelError
from ..state import Tower

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
    """Raise where an instance has a forward of its own, which would run instead of ours, silently."""
    for module in modules:
        if "forward" in module.__dict__:
            by = "accelerate's hooks" if hasattr(module, "_hf_hook") else "something else"
            raise UnsupportedModelError(
                f"The forward of a {type(module).__name__} has been replaced by {by}, so merging in it would do "
                "nothing. Call `hf_tome.apply` first and dispatch, offload or wrap the model after it, or load it on "
                "one device."
            )

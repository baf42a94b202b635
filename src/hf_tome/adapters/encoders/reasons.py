"""Messages for models in which no encoder can be merged: what was found, what is supported, what to do."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...patching.plans import NEXT_STEPS
from .families.family import Family
from .families.registry import TOWERS, WRAPPERS, inner_config
from .unsupported import why_unsupported


def why_not(root: nn.Module, hint: str = "") -> str:
    """Return why no encoder is found in a model, what is supported and what to do; `hint` goes before the latter."""
    model_type = getattr(getattr(root, "config", None), "model_type", None)
    problem = f"Found no encoder to merge tokens in: {type(root).__name__}"
    if model_type is not None:
        problem += f" (model type {model_type!r})"
    how = f"{hint}{NEXT_STEPS}"
    reason = why_unsupported(model_type)
    if reason is not None:
        return f"{problem} is not supported, because {reason}. {how}"
    inner = inner_config(root.config) if model_type else None
    tower_type = None if inner is None else inner.model_type
    reason = why_unsupported(tower_type)
    if reason is not None:
        return f"{problem} is not supported around a tower of type {tower_type!r}: {reason}. {how}"
    return f"{problem} holds none of the supported {', '.join(sorted(TOWERS))}. {how}"


def unknown_owner(owner: Any, family: Family) -> str:
    """Return why merging is not supported in a model around a tower, and what is."""
    name = type(owner).__name__
    reason = why_unsupported(getattr(getattr(owner, "config", None), "model_type", None)) or "its head is not known"
    supported = ", ".join(name for name, rows in {**family.heads, **WRAPPERS}.items() if not isinstance(rows, str))
    return (
        f"{name} holds a {family.tower}, in which tokens can be merged, but {name} itself is not supported: "
        f"{reason}. Supported around this tower: {supported}, and vision-language models. {NEXT_STEPS}"
    )

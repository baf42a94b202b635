"""The table of methods, and `register_method`, which adds to it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from . import downsample, greedy, k_means, tome
from .mame import row as mame
from .method import CHOICES, FIXED_METRICS, MATCH_FIELDS, Method
from .pruning import attention as attention_prune
from .pruning import cache as cache_prune
from .pruning import random as random_prune

_BUILT_IN = (
    tome.METHOD,
    mame.METHOD,
    random_prune.METHOD,
    attention_prune.METHOD,
    k_means.METHOD,
    greedy.METHOD,
    cache_prune.RECENT,
    cache_prune.KEYDIFF,
    downsample.METHOD,
)
_METHODS: dict[str, Method] = {method.name: method for method in _BUILT_IN}

METHODS: Mapping[str, Method] = MappingProxyType(_METHODS)
"""The methods by name, read-only; `register_method` adds one."""


def get_method(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(
            f"`method` is {name!r}; it takes one of {', '.join(map(repr, METHODS))}. A method of your own is added "
            "with `hf_tome.register_method`, before configs that name it are made or read."
        )
    return METHODS[name]


def register_method(method: Method, *, exist_ok: bool = False) -> Method:
    """Add a method, so that configs, `apply`, reports, counts, sweeps, tuning and plots know it by its name.

    Args:
        method (`Method`): the row. It uses fields that `MergeConfig` already has; see `Method`.
        exist_ok (`bool`, *optional*, defaults to `False`): replace a registered method of the same name, as when a
            notebook's cell runs again. The library's own methods are never replaced.

    Returns:
        The method.

    Raises:
        TypeError: it is not a `Method`.
        ValueError: the name is taken or no name, or an entry of the row is not what it takes.
    """
    if not isinstance(method, Method):
        raise TypeError(f"`method` is a {type(method).__name__}; it takes a `hf_tome.merging.Method`.")
    name = method.name
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"`name` is {name!r}; it takes lower-case letters, digits and underscores, as in 'my_method'."
        )
    if name in {row.name for row in _BUILT_IN} or (name in METHODS and not exist_ok):
        raise ValueError(
            f"There is a method {name!r} already; choose another name, or pass `exist_ok=True` for yours."
        )
    _check_entries(method)
    _METHODS[name] = method
    return method


def _check_entries(method: Method) -> None:
    for entry in ("match", "layers", "planned_tokens", "compared_pairs"):
        if not callable(getattr(method, entry)):
            raise ValueError(
                f"`{entry}` of method {method.name!r} is {getattr(method, entry)!r}; it takes a function."
            )
    unknown = [field for field in method.fields if field not in MATCH_FIELDS]
    if isinstance(method.fields, str) or unknown:
        raise ValueError(
            f"`fields` of {method.name!r} is {method.fields!r}; it takes names among {', '.join(MATCH_FIELDS)}. "
            "A parameter that is no field of a config is bound in `match`."
        )
    for choice, value in method.defaults.items():
        if value not in CHOICES.get(choice, ()):
            takes = CHOICES.get(choice, tuple(CHOICES))
            raise ValueError(
                f"`defaults` of method {method.name!r} has {choice}={value!r}; it takes one of {', '.join(takes)}."
            )
    if method.metric is not None and method.metric not in FIXED_METRICS:
        raise ValueError(
            f"`metric` of method {method.name!r} is {method.metric!r}; it takes None, or one of "
            f"{', '.join(map(repr, FIXED_METRICS))}."
        )
    if method.search_field not in method.fields or (method.search_field != "r" and not method.search_values):
        raise ValueError(
            f"`search_field` of method {method.name!r} is {method.search_field!r}; it takes one of its `fields`, "
            "and `search_values` from mild to strong unless it is 'r'."
        )

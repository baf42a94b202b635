"""Which fields of a config may be set together: with its method, in its place, and beside each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..merging.methods import METHODS, get_method
from .places import PLACES, applicable_fields, method_fields, why_not
from .validation import shown

if TYPE_CHECKING:
    from .merge_config import MergeConfig


def set_fields(config: MergeConfig) -> list[str]:
    """Return the names of the fields that differ from their defaults."""
    return [field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default]


def check_applicable(config: MergeConfig) -> None:
    """Raise where a field is set that means nothing to the method, or in the place."""
    method = get_method(config.method)
    reason = why_not(method, config.where)
    if reason is not None:
        raise ValueError(f"`where` is {config.where!r}, but method {config.method!r} {reason}. Change one of them.")
    applicable, of_method = applicable_fields(method, config.where), method_fields(method)
    for name in set_fields(config):
        if name in applicable:
            continue
        setting = f"`{name}` is {shown(getattr(config, name))}"
        places = [place for place, row in PLACES.items() if name in row.adds]
        if config.where in places:
            raise ValueError(f"{setting}, but it means nothing to method {config.method!r}. Leave it out.")
        if name not in of_method and places:
            raise ValueError(f"{setting}, but with `where={config.where!r}` it means nothing; {_applies(places)}")
        if name not in of_method:
            methods = [other.name for other in METHODS.values() if name in method_fields(other)]
            raise ValueError(
                f"{setting}, but method {config.method!r} does not use it; it applies to "
                f"{', '.join(map(repr, methods))}. Leave it out, or change `method`."
            )
        raise ValueError(f"{setting}, but with `where={config.where!r}` {PLACES[config.where].merges}. Leave it out.")


def check_together(config: MergeConfig) -> None:
    """Raise where fields exclude each other."""
    if config.ratio is not None and config.r != 0:
        raise ValueError(
            f"`r` is {shown(config.r)} and `ratio` is {config.ratio:g}; both say how many tokens merge. Leave one out."
        )
    if config.protect_attended and config.distance == "dot":
        raise ValueError(
            f"`protect_attended` is {config.protect_attended:g} and `distance` is 'dot', which knows no distance to "
            "multiply: a product has no highest value. Leave one of them out."
        )
    if config.keep_ratio is not None and config.batching == "union":
        raise ValueError(
            "`batching` is 'union', but with `keep_ratio` every image keeps the same number of tokens, so there "
            "is nothing to unite. Leave one of them out."
        )
    if config.where == "projected" and not isinstance(config.r, int):
        raise ValueError(
            f"`r` is {shown(config.r)}; with `where='projected'` tokens merge once, so it takes one integer, the "
            "tokens to merge of each image."
        )


def _applies(places: Sequence[str]) -> str:
    return f"it applies with `where` {' or '.join(map(repr, places))}. Leave it out, or change `where`."

"""Which towers a model has, and which of them merge: all, or those that the config names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import transformers  # whose heavy classes are imported where they are used
from torch import nn

from ..config import MergeConfig

RowT = TypeVar("RowT")
TowerT = TypeVar("TowerT", bound=tuple[Any, ...])


def towers_with_rows(root: nn.Module, rows: Mapping[str, RowT]) -> Iterator[tuple[str, nn.Module, RowT]]:
    """Yield path, module and row of every model of transformers in `root` whose class's name has a row."""
    for path, module in root.named_modules():
        if isinstance(module, transformers.PreTrainedModel) and type(module).__name__ in rows:
            yield path, module, rows[type(module).__name__]


def chosen_towers(towers: Iterable[TowerT], config: MergeConfig) -> list[TowerT]:
    """Return the towers that a config names, all where it names none.

    Args:
        towers: tuples that begin with the path of a tower in the model.
        config: whose `towers` are paths, or consecutive parts of one.

    Raises:
        ValueError: no tower has one of the names; the message lists those there are.
    """
    listed = list(towers)
    if config.towers is None:
        return listed
    for name in config.towers:
        if not any(_is_at(name, tower[0]) for tower in listed):
            paths = ", ".join(repr(tower[0]) for tower in listed)
            raise ValueError(f"`towers` names {name!r}, but the model's towers are at {paths}. Name one of them.")
    return [tower for tower in listed if any(_is_at(name, tower[0]) for name in config.towers)]


def _is_at(name: str, path: str) -> bool:
    return f".{name}." in f".{path}."

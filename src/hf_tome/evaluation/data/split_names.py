"""What the splits of a data set are called, and which one is meant."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..options import OptionError

logger = logging.getLogger(__name__)

T = TypeVar("T")

ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""By the name of a folder or file, the split that it holds, as in `datasets`."""

PREFERRED = ("validation", "test")
"""Taken in this order where no split is asked for."""


class DataError(ValueError):
    """The data set, its split or its columns are not as needed; the message says what to do."""


def is_split_name(name: str) -> bool:
    """Tell whether a folder of that name can be expected to hold a split."""
    return name.casefold() in ALIASES


def canonical(name: str) -> str:
    """Return what the split in a folder or file of that name is called."""
    return ALIASES.get(name.casefold(), name)


def by_split(places: Mapping[str, T]) -> dict[str, T]:
    """Return places by split instead of by name; names of one split, such as `val` and `validation`, stay apart."""
    names = [canonical(name) for name in places]
    return {split if names.count(split) == 1 else name: place for split, (name, place) in zip(names, places.items())}


def split_of_file(path: Path) -> str:
    """Return the split of a shard by its path in the data set: of a folder, else of a word in its name, else train.

    Words stand between other signs than letters: `validation-00000.tar` and `imagenet-val.0.tar` are of `validation`,
    `strain.tar` is not of `train`.
    """
    for part in (*path.parts[:-1], path.name.split(".")[0]):
        for word in re.split(r"[\W\d_]+", part):
            if is_split_name(word):
                return canonical(word)
    return "train"


def choose_split(source: str, split: str | None, available: Sequence[str]) -> str:
    """Return the split that is meant among those there are; "val" is "validation".

    Raises:
        DataError: there is no such split, or several and none is asked for.
    """
    if split is None:
        preferred = next((name for name in PREFERRED if name in available), None)
        if preferred is None and len(available) > 1:
            raise DataError(f"{source} has the splits {', '.join(map(repr, available))}; choose one with --split.")
        return preferred or available[0]
    if split not in available and canonical(split) in available:
        logger.info("Split %r of %s is called %r.", split, source, canonical(split))
        return canonical(split)
    if split not in available:
        raise DataError(
            f"{source} has no split {split!r}; it has {', '.join(map(repr, available))}. "
            "(A folder with class folders and no split folders has only 'train'.)"
        )
    return split


def file_split(path: Path, split: str | None) -> str:
    """Return the split of a single file of samples: its own name, which alone may be asked for.

    Raises:
        DataError: another one is asked for.
    """
    if split is not None and canonical(split) != canonical(path.stem):
        raise DataError(
            f"{path.name} is one file, whose samples are its split {path.stem!r}, and not {split!r}. Leave --split "
            "out, or give the folder of the files."
        )
    return path.stem


def refuse_streaming(streaming: bool, source: str, detail: str) -> None:
    """Refuse to stream data that are read piece by piece anyway.

    Raises:
        OptionError: they are to be streamed.
    """
    if streaming:
        raise OptionError(
            f"--streaming means nothing to {source}, {detail}, which is read as it is needed; it is for data sets of "
            "the Hub, Parquet files and shards. Leave it out."
        )

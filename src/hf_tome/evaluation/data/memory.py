"""Data sets in memory, the digits that ship with scikit-learn by name, and where neither is meant, `open_split`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..options import JobOptions
from .columns import content_columns, first_of
from .digits import DATA_NAME, SPLITS, load_digits
from .split_names import DataError, choose_split, refuse_streaming
from .splits import OpenedSplit, open_split, undecoded

CONTENTS = {"Image": ("image", "img", "path"), "Video": ("video", "clip", "path"), "Audio": ("audio", "path")}
"""By kind, the columns of paths that are read as contents where no column has the feature of that kind."""


def in_memory(options: JobOptions) -> Any:
    """Return the rows in memory that the options mean, by split where there are several; `None` for files and ids."""
    if options.rows is not None:
        return options.rows
    if options.data == DATA_NAME and not Path(options.data).exists():
        refuse_streaming(options.streaming, options.data, "a data set in memory")
        return {name: load_digits(name) for name in SPLITS}
    return None


def open_data_set(rows: Any, options: JobOptions, kind: str) -> OpenedSplit:
    """Open one split of `in_memory`'s rows, or where these are `None` of the Hub's data set or the folder.

    Raises:
        DataError: there is no such split, no data, or no column of that kind in rows in memory.
        SourceError: the data look like a folder and are none.
    """
    if rows is not None:
        return open_memory(rows, options, kind)
    return open_split(options.data, options.split, kind=kind, streaming=options.streaming)


def open_memory(rows: Any, options: JobOptions, kind: str) -> OpenedSplit:
    """Open one split of `in_memory`.

    Raises:
        DataError: there is no such split, or no column of that kind.
    """
    if isinstance(rows, Mapping):
        name = choose_split(options.data, options.split, list(rows))
        rows = rows[name]
    else:
        name = str(getattr(rows, "split", None) or options.split or "test")
        if options.split is not None and options.split != name:
            raise DataError(f"The data set is split {name!r}, not {options.split!r}; leave `split` out.")
    return OpenedSplit(_with_contents(rows, options, kind), name, None)


def _with_contents(rows: Any, options: JobOptions, kind: str) -> Any:
    """Return the rows with an undecoded column of the kind; a column of paths becomes one."""
    import datasets

    if content_columns(rows, kind):
        return undecoded(rows, kind)
    features = rows.features or {}
    column = first_of(CONTENTS[kind], [name for name, column_feature in features.items() if _is_text(column_feature)])
    if column is None:
        listed = ", ".join(f"{name}: {type(feature).__name__}" for name, feature in features.items())
        raise DataError(
            f"{options.data} has no column of {kind.lower()}s; it takes a column {CONTENTS[kind][0]!r} of the feature "
            f"datasets.{kind}, or of paths. The columns are {listed or 'unknown'}."
        )
    return rows.cast_column(column, getattr(datasets, kind)(decode=False))


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")

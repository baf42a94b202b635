"""Shards: Parquet files, and WebDataset's tar files, in which a sample is the members of one key.

They are listed here and handed to `datasets` one by one, as it guesses splits from any name that contains "train" or
"test", and reads brackets in a path as a pattern.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from ..samples import first_line
from ..split_names import DataError, split_of_file
from .folders import is_visible

DEPTH = 3
"""Folders that a shard may lie deep, its name included: `data/validation/00000.parquet`."""
LABEL = "label"
LABEL_FIELDS = ("label", "labels", "cls", "label.txt", "class", "wnid", "class_name")
"""Members of a sample, or entries of its JSON, that tell its label, in the order of preference."""


def find_shards(path: Path, suffix: str) -> dict[str, list[Path]]:
    """Return the visible files of a suffix in a folder by split; see `split_of_file`."""
    patterns = ["/".join(["*"] * depth) + suffix for depth in range(1, DEPTH + 1)]
    files = [file for pattern in patterns for file in sorted(path.glob(pattern)) if file.is_file()]
    shards: dict[str, list[Path]] = {}
    for file in files:
        if is_visible(file, path) and file.stem != "metadata":
            shards.setdefault(split_of_file(file.relative_to(path)), []).append(file)
    return shards


def open_parquet(path: Path, shards: dict[str, list[Path]], streaming: bool = False) -> dict[str, Any]:
    """Open Parquet files, split by split.

    Raises:
        DataError: they cannot be read together.
    """
    import datasets

    try:
        files, features = _data_files(shards), _declared_features(path)
        return dict(datasets.load_dataset("parquet", data_files=files, features=features, streaming=streaming))
    except Exception as error:  # pyarrow and `datasets` have no common class for theirs
        raise DataError(f"The Parquet files in {path} cannot be read: {_cause(error)}") from error


def open_shards(path: Path, shards: dict[str, list[Path]], streaming: bool = False) -> dict[str, Any]:
    """Open WebDataset shards, split by split, with the column `label`.

    A label is a member of the sample (`x.cls`, `x.label.txt`), an entry of its JSON (`x.json`), or else the folder in
    its key (`n01440764/x.jpg`). Without `streaming`, `datasets` copies the contents to its cache.

    Raises:
        ValueError: the tar files are no shards; the message says what they hold.
    """
    import datasets

    try:
        splits = dict(datasets.load_dataset("webdataset", data_files=_data_files(shards), streaming=streaming))
        return {name: _with_label(rows) for name, rows in splits.items()}
    except Exception as error:  # tarfile, pyarrow and `datasets` have no common class for theirs
        raise DataError(
            f"The tar files in {path} cannot be read as WebDataset shards: {_cause(error)} Members of one sample "
            "share a key, and every sample has the same members: 0001.jpg, 0001.cls, 0002.jpg, 0002.cls, ..."
        ) from error


def _declared_features(path: Path) -> Any:
    """Return the features that the card of a data set declares, as a clone of a Hub repository has one, or `None`."""
    from datasets.info import DatasetInfosDict

    declared = [info.features for info in DatasetInfosDict.from_directory(str(path)).values() if info.features]
    return declared[0] if len(declared) == 1 else None


def _data_files(shards: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {split: [glob.escape(str(file.absolute())) for file in files] for split, files in shards.items()}


def _cause(error: BaseException) -> str:
    """Return the first line of the error that `datasets` wrapped, if it did."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error) if isinstance(error, Exception) else str(error)


def _with_label(rows: Any) -> Any:
    import datasets

    features = rows.features
    for name in LABEL_FIELDS:
        if name in features:
            return rows if name == LABEL else rows.rename_column(name, LABEL)
    entries = features.get("json")
    if isinstance(entries, dict):
        for name in LABEL_FIELDS:
            if name in entries:
                return _add(rows, "json", entries[name], lambda record, name=name: record[name])
    return _add(rows, "__key__", datasets.Value("string"), lambda key: Path(key).parent.name or None)


def _add(rows: Any, column: str, feature: Any, label: Any) -> Any:
    """Return the rows with the label computed of one column; the images of a map-style set are not rewritten."""
    import datasets

    if isinstance(rows, datasets.IterableDataset):
        features = datasets.Features({**rows.features, LABEL: feature})
        return rows.map(lambda value: {LABEL: label(value)}, input_columns=column, features=features)
    labels = [label(value) for value in rows[column]]
    return rows.add_column(LABEL, labels, feature=feature)

"""WebDataset shards: tar files in which a sample is the members of one key, opened with a label column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .samples import first_line

LABEL = "label"
LABEL_FIELDS = ("label", "labels", "cls", "label.txt", "class", "wnid", "class_name")
"""Members of a sample, or entries of its JSON, that tell its label, in the order of preference."""


def has_shards(path: Path) -> bool:
    """Tell whether a folder, or a folder in it, holds tar files."""
    return any(path.glob("*.tar")) or any(path.glob("*/*.tar"))


def open_shards(path: Path, streaming: bool = False) -> dict[str, Any]:
    """Open the shards of a folder, split by split, with the column `label`.

    A split is a folder (`validation/00000.tar`) or the beginning of a file's name (`validation-00000.tar`). A label is
    a member of the sample (`x.cls`, `x.label.txt`), an entry of its JSON (`x.json`), or else the folder in its key
    (`n01440764/x.jpg`). Without `streaming`, `datasets` copies the contents to its cache.

    Raises:
        ValueError: the tar files are no shards; the message says what they hold.
    """
    import datasets

    try:
        splits = dict(datasets.load_dataset("webdataset", data_dir=str(path), streaming=streaming))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"The tar files in {path} cannot be read as WebDataset shards: {first_line(error)} Members of one sample "
            "share a key, and every sample has the same members: 0001.jpg, 0001.cls, 0002.jpg, 0002.cls, ..."
        ) from error
    return {name: _with_label(rows) for name, rows in splits.items()}


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
    found = [label(value) for value in rows[column]]
    return rows.add_column(LABEL, found, feature=feature)

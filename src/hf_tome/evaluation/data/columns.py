"""Which columns of a data set hold what, and what its labels are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .files.text_files import composed
from .labels import ClassNames
from .split_names import DataError

LABELS = ("label", "labels", "fine_label")
"""Names of a column of labels, in the order of preference."""


def content_columns(rows: Any, kind: str) -> list[str]:
    """Return the columns whose feature in `datasets` is `kind`: "Image", "Video" or "Audio"."""
    import datasets

    feature = getattr(datasets, kind)
    return [name for name, column_feature in (rows.features or {}).items() if isinstance(column_feature, feature)]


def content_and_label_columns(rows: Any, kind: str, source: str) -> tuple[str, str]:
    """Return the names of the column of contents and the column of labels.

    Raises:
        DataError: there is none; the message lists the columns.
    """
    contents, labels = content_columns(rows, kind), label_columns(rows)
    if contents and labels:
        return contents[0], labels[0]
    missing = f"a label column ({', '.join(LABELS)} or any ClassLabel)"
    if not contents:
        missing = f"{'an' if kind[0] in 'AI' else 'a'} {kind.lower()} column"
    columns = ", ".join(f"{name}: {type(feature).__name__}" for name, feature in (rows.features or {}).items())
    raise DataError(
        f"The data in {source} lack {missing}; the columns are {columns or 'unknown'}. A local folder of files needs "
        "one folder a class: validation/<class>/<file>."
    )


def label_columns(rows: Any) -> list[str]:
    """Return the columns of labels: those of their names, then any `ClassLabel`."""
    import datasets

    features = rows.features or {}
    named = [name for name in LABELS if name in features]
    return named + [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]


def first_of(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """Return the first of some names that is a column."""
    return next((name for name in names if name in columns), None)


def has_several_labels(rows: Any, column: str) -> bool:
    """Tell whether each sample has a list of labels."""
    return hasattr(rows.features[column], "feature")


def label_names(rows: Any, column: str, source: str, described: ClassNames | None = None) -> list[str]:
    """Return the names of the labels in `column`: of a `ClassLabel` by index, of strings the distinct ones.

    Numbers without names, and strings in a stream, which are not known beforehand, take those of the labels file
    `described`.

    Raises:
        DataError: the labels have no names, so that they cannot be matched to a model's.
    """
    import datasets

    several = has_several_labels(rows, column)
    feature = rows.features[column].feature if several else rows.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return [composed(name) for name in feature.names]
    is_text = feature.dtype == "string"
    if described is not None and not is_text and described.by_index:
        return list(described.by_index)
    if described is not None and is_text and not hasattr(rows, "unique"):
        return list(described.names)
    if not is_text or not hasattr(rows, "unique"):
        label_type = "strings in a stream" if is_text else f"{feature.dtype} without names"
        raise DataError(
            f"The labels in column {column!r} of {source} are {label_type}, so they cannot be matched to the model's "
            "by name. Put a classes.csv (columns index,label,name) or a classnames.txt (a name a line, in the order "
            "of the numbers) beside the data, use --labels, or cast the column to ClassLabel with names."
        )
    values = {name for names in rows[column] for name in names or ()} if several else set(rows.unique(column))
    return sorted({composed(name) for name in values if name})

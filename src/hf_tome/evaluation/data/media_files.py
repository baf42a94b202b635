"""Open labelled clips and recordings: folders of files, lists in a CSV, or data sets whose features say what they are.

Files are listed here rather than by `datasets`' own folder loaders, which fail where torchcodec is missing or broken.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...hub.sources import is_folder, public_name
from ..options import JobOptions
from . import labels
from . import splits as data
from .samples import LabelledSamples, SkipSample, stored_path
from .shards import has_shards
from .splits import DataError

if TYPE_CHECKING:
    import datasets

SUFFIXES = {
    "Video": (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg"),
    "Audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus", ".aac"),
}
"""By the feature of `datasets`, the files that hold it."""

NO_LABEL = (None, "", -1)
"""What stands for a label that is not there."""

ENCODING = "utf-8-sig"
"""Of a list: UTF-8, with the mark that spreadsheets put before it or without."""
LABEL_COLUMNS = ("label", "labels")
SEPARATOR = ";"
"""Between the labels of a sample that has several, in the column `labels` of a CSV."""


def open_media(options: JobOptions, kind: str) -> tuple[Any, str, str, str]:
    """Open one split of clips (`kind="Video"`) or recordings (`"Audio"`).

    Takes a folder `<split>/<class>/<file>`, a CSV with the columns `path` and `label` (or `labels`, several of them
    with semicolons between), by itself or as `<split>.csv` in a folder, and what `datasets` opens.

    Returns:
        The rows, the split's name, and the names of the columns of contents and of labels.

    Raises:
        DataError: there is nothing of that kind; the message says what is needed.
    """
    path = Path(options.data).expanduser()
    if path.suffix == ".csv" and path.is_file():
        data.refuse_streaming(options.streaming, options.data, "a list of files")
        return _read_list(path), data.file_split(path, options.split), "path", _label_column(path)
    if is_folder(options.data, "data set") and not _is_data_set(path):
        data.refuse_streaming(options.streaming, options.data, "a folder of files")
        return _open_folder(path, options.split, kind)
    rows, split = data.open_split(options.data, options.split, streaming=options.streaming)
    return _undecoded(rows, kind, options.data), split, *_columns(rows, kind, options.data)


def match_rows(
    rows: Any,
    split: str,
    columns: tuple[str, str],
    names: list[str],
    to_model: dict[str, int],
    options: JobOptions,
    decode: Callable[[Any], Any],
) -> LabelledSamples:
    """Draw the samples, and give each the model's index of its label, or of all its labels.

    `names` are the data's labels, by number where it has numbers.
    """
    column, label_column = columns

    def index(label: Any) -> int:
        # A column of numbers holds indices into `names`, a column of strings the names.
        return to_model[label if isinstance(label, str) else names[label]]

    def model_label(label: Any) -> int | tuple[int, ...]:
        found = [one for one in (label if isinstance(label, list) else [label]) if one not in NO_LABEL]
        if not found:
            raise SkipSample("it has no label")
        return tuple(sorted(map(index, found))) if isinstance(label, list) else index(label)

    return LabelledSamples(
        name=public_name(options.data) if Path(options.data).suffix != ".csv" else Path(options.data).stem,
        split=split,
        rows=data.take(rows, options.limit, options.seed),
        column=column,
        label_column=label_column,
        model_label=model_label,
        decode=decode,
    )


def match_names(
    rows: Any, split: str, label_column: str, model_labels: Any, options: JobOptions
) -> tuple[list[str], dict[str, int]]:
    """Return the data's labels and the model's index of each, with the help of a labels file where there is one.

    Raises:
        ValueError: a label has no name, or no counterpart among the model's.
    """
    described = class_names(options, split)
    names = data.label_names(rows, label_column, options.data, described)
    return names, labels.match_labels(names, dict(model_labels or {}), described)


def class_names(options: JobOptions, split: str) -> labels.ClassNames | None:
    """Return the labels file that is given or lies beside the data, or `None`."""
    if options.labels is not None:
        return labels.read_class_names(options.labels)
    return labels.find_class_names(Path(options.data).expanduser(), split)


def stored_source(stored: Any) -> str | bytes:
    """Return the path, or else the bytes, of a stored clip or recording."""
    path = stored_path(stored)
    content = stored.get("bytes") if isinstance(stored, dict) else None
    if content is not None:
        return content
    if path is None:
        raise SkipSample("it has neither a path nor bytes")
    return path


def _open_folder(path: Path, split: str | None, kind: str) -> tuple[Any, str, str, str]:
    """List `<split>/<class>/<file>`; a folder without split folders is `train`, as in `datasets`."""
    lists = {file.stem: file for file in sorted(path.glob("*.csv")) if _is_list(file)}
    folders = {folder.name: folder for folder in sorted(path.iterdir()) if any(_files(folder, kind, "*/*"))}
    if not folders and any(_files(path, kind, "*/*")):
        folders = {"train": path}
    found = {("validation" if name == "val" else name): place for name, place in {**folders, **lists}.items()}
    if not found:
        raise DataError(
            f"No {kind.lower()} files in {path}. It needs one folder a split and one a class: "
            f"validation/<class>/<file>{SUFFIXES[kind][0]}, or validation.csv with the columns path and label."
        )
    name = data.choose_split(str(path), split, list(found))
    place = found[name]
    if place.suffix == ".csv":
        return _read_list(place), name, "path", _label_column(place)
    files = list(_files(place, kind, "*/*"))
    return _rows([str(file) for file in files], [file.parent.name for file in files], "label"), name, "path", "label"


def _files(folder: Path, kind: str, pattern: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.glob(pattern) if file.suffix.lower() in SUFFIXES[kind])


def _read_list(path: Path) -> datasets.Dataset:
    column = _label_column(path)
    with path.open(newline="", encoding=ENCODING) as file:
        entries = list(csv.DictReader(file))
    texts = [(entry[column] or "").strip() for entry in entries]  # a short row has no last field
    found: list[Any] = [text or None for text in texts]
    if column == "labels":
        found = [[name.strip() for name in text.split(SEPARATOR) if name.strip()] for text in texts]
    return _rows([str(path.parent / entry["path"]) if entry["path"] else None for entry in entries], found, column)


def _label_column(path: Path) -> str:
    columns = _list_columns(path)
    found = [name for name in LABEL_COLUMNS if name in columns]
    if "path" not in columns or not found:
        raise DataError(f"{path} has the columns {', '.join(columns)}; a list needs 'path' and 'label' (or 'labels').")
    return found[0]


def _is_list(path: Path) -> bool:
    """Tell whether a CSV has the columns of a list of files, rather than notes or the names of the classes."""
    try:
        return bool(_label_column(path))
    except (ValueError, csv.Error):  # what is no UTF-8 is a ValueError too
        return False


def _list_columns(path: Path) -> list[str]:
    with path.open(newline="", encoding=ENCODING) as file:
        return list(csv.DictReader(file).fieldnames or [])


def _rows(paths: list[str | None], found: list[Any], column: str) -> datasets.Dataset:
    import datasets

    return datasets.Dataset.from_dict({"path": paths, column: found})


def _is_data_set(path: Path) -> bool:
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return saved or has_shards(path) or any(path.rglob("*.parquet"))


def _undecoded(rows: Any, kind: str, source: str) -> Any:
    import datasets

    return rows.cast_column(_columns(rows, kind, source)[0], getattr(datasets, kind)(decode=False))


def _columns(rows: Any, kind: str, source: str) -> tuple[str, str]:
    import datasets

    features = rows.features or {}
    contents = [name for name, feature in features.items() if isinstance(feature, getattr(datasets, kind))]
    if not contents:
        raise DataError(f"The data in {source} have no {kind.lower()} column; the columns are {', '.join(features)}.")
    return contents[0], data.label_column(rows, source)

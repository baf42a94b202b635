"""Open labelled images, clips and recordings: folders of files, lists in a CSV, or data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...hub.sources import is_folder, public_name
from ..options import JobOptions
from . import labels
from .columns import LABELS, content_and_label_columns, first_of, label_names
from .files.folders import find_splits, nothing_there
from .files.paths import joined
from .files.text_files import composed, read_csv, split_values
from .memory import in_memory, open_data_set
from .samples import LabelledSamples, SkipSample, stored_path
from .split_names import DataError, by_split, choose_split, file_split, refuse_streaming
from .splits import OpenedSplit, draw_rows, is_data_set, open_class_folders

NO_LABEL = (None, "", -1)
"""What stands for a label that is not there."""


@dataclass(frozen=True)
class MediaList:
    """A CSV of files and their labels: its path, its rows, and the column of labels."""

    path: Path
    entries: Sequence[Mapping[str, str | None]]
    label_column: str


def open_media(options: JobOptions, kind: str) -> tuple[OpenedSplit, tuple[str, str]]:
    """Open one split of images (`kind="Image"`), clips (`"Video"`) or recordings (`"Audio"`).

    Takes what `open_split` does; of clips and recordings also a CSV with the columns `path` and `label` (or `labels`,
    several of them with semicolons between), by itself or as `<split>.csv` in a folder.

    Returns:
        The split, and the names of its columns of contents and of labels.

    Raises:
        DataError: there is nothing of that kind; the message says what is needed.
    """
    rows, path = in_memory(options), Path(options.data).expanduser().absolute()
    takes_lists = rows is None and kind != "Image"
    if takes_lists and path.suffix == ".csv" and path.is_file():
        refuse_streaming(options.streaming, options.data, "a list of files")
        return _open_list(_read_list(path), file_split(path, options.split))
    if takes_lists and is_folder(options.data, "data set") and not is_data_set(path):
        refuse_streaming(options.streaming, options.data, "a folder of files")
        return _open_folder(path, options.split, kind)
    opened = open_data_set(rows, options, kind)
    return opened, content_and_label_columns(opened.rows, kind, options.data)


def match_rows(
    opened: OpenedSplit,
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
        return to_model[composed(label) if isinstance(label, str) else names[label]]

    def model_label(label: Any) -> int | tuple[int, ...]:
        given = [name for name in (label if isinstance(label, list) else [label]) if name not in NO_LABEL]
        if not given:
            raise SkipSample("it has no label")
        return tuple(sorted(map(index, given))) if isinstance(label, list) else index(label)

    return LabelledSamples(
        name=public_name(options.data) if Path(options.data).suffix != ".csv" else Path(options.data).stem,
        split=opened.name,
        rows=draw_rows(opened.rows, options.limit, options.seed),
        column=column,
        label_column=label_column,
        model_label=model_label,
        decode=decode,
        roots=opened.roots,
        folder=opened.folder,
        left_out=opened.left_out,
    )


def match_names(
    opened: OpenedSplit, label_column: str, model_labels: Any, options: JobOptions
) -> tuple[list[str], dict[str, int]]:
    """Return the data's labels and the model's index of each, with the help of a labels file where there is one.

    Raises:
        ValueError: a label has no name, or no counterpart among the model's.
    """
    described = class_names(options, opened)
    names = label_names(opened.rows, label_column, options.data, described)
    return names, labels.match_labels(names, dict(model_labels or {}), described)


def class_names(options: JobOptions, opened: OpenedSplit) -> labels.ClassNames | None:
    """Return the labels file that is given or lies beside the data, or `None`."""
    if options.labels is not None:
        return labels.read_class_names(options.labels)
    if opened.roots is None:  # nothing lies beside data in memory
        return None
    folder = opened.folder.name if opened.folder is not None else opened.name
    return labels.find_class_names(Path(options.data).expanduser(), folder)


def stored_source(stored: Any) -> str | bytes:
    """Return the path, or else the bytes, of a stored clip or recording."""
    path = stored_path(stored)
    content = stored.get("bytes") if isinstance(stored, dict) else None
    if content is not None:
        return content
    if path is None:
        raise SkipSample("it has neither a path nor bytes")
    return path


def _open_folder(path: Path, split: str | None, kind: str) -> tuple[OpenedSplit, tuple[str, str]]:
    """Open one split of a folder of class folders and lists."""
    lists = {}
    for file in sorted(path.glob("*.csv")):
        with suppress(ValueError):  # notes, the names of the classes, or no UTF-8
            lists[file.stem] = _read_list(file)
    folders = find_splits(path, split, kind)
    places: dict[str, Any] = by_split({**folders, **lists})
    if not places:
        raise DataError(nothing_there(path, kind))
    name = choose_split(str(path), split, list(places))
    if isinstance(places[name], MediaList):
        return _open_list(places[name], name)
    return open_class_folders(path, name, places, kind)


def _read_list(path: Path) -> MediaList:
    """Read a CSV of files and labels.

    Raises:
        DataError: it is none, or lacks the columns.
    """
    try:
        columns, entries = read_csv(path)
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    label_column = first_of(LABELS, columns)
    if "path" not in columns or label_column is None:
        raise DataError(f"{path} has the columns {', '.join(columns)}; a list needs 'path' and 'label' (or 'labels').")
    return MediaList(path, entries, label_column)


def _open_list(media: MediaList, split: str) -> tuple[OpenedSplit, tuple[str, str]]:
    """Return the rows of a list, with whole paths, and its columns."""
    import datasets

    folder, column = media.path.parent, media.label_column
    several = column == "labels"
    texts = [entry[column] or "" for entry in media.entries]  # a short row has no last field
    values: list[Any] = [split_values(text) if several else text.strip() or None for text in texts]
    paths = [joined(folder, entry["path"]) if entry["path"] else None for entry in media.entries]
    rows = datasets.Dataset.from_dict({"path": paths, column: values})
    return OpenedSplit(rows, split, (folder,)), ("path", column)

"""Images with texts: captions or questions in a JSON, JSONL or CSV file beside the images, or a data set's columns.

A file is a list of samples, each an object (a row of a CSV) that names its image and holds its texts; `captioning`
and `vqa` say which. It lies beside its images: `image` is a path from the file's folder, or from `images/` in it.
`--data` is the file, or a folder of such files, one a split (`validation.jsonl`). A JSON file of COCO's captions, an
object with `images` and `annotations`, is taken as it is. Without such a file the data are a Hub data set, Parquet
files, shards, or a folder of images with a `metadata.jsonl`, as everywhere (see `data.open_split`).
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...hub.sources import is_folder, public_name
from ...media.limits import DEFAULT_LIMITS, MediaLimits
from ..options import JobOptions
from .columns import content_columns, first_of
from .files.paths import PathError, find_inside, joined
from .files.text_files import read_csv, read_json, read_json_lines, split_values
from .memory import in_memory, open_data_set
from .samples import Samples, SkipSample
from .split_names import DataError, by_split, choose_split, file_split, refuse_streaming
from .splits import OpenedSplit, draw_rows, open_image

IMAGE_COLUMNS = ("image", "img", "file_name", "image_path", "path")


class Table(list):
    """Rows of a file, as plain dictionaries."""

    def select(self, indices: Iterable[int]) -> Table:
        """Return some rows, as `datasets.Dataset.select` does."""
        return Table(self[int(index)] for index in indices)


@dataclass
class ImageTexts(Samples):
    """Images with texts.

    Attributes:
        read_row: a row's prompt, and what is right to say; an `SkipSample` says what it lacks.
        media_limits: sizes beyond which an image is skipped.
    """

    read_row: Callable[[Mapping[str, Any]], tuple[str, Any]]
    media_limits: MediaLimits = DEFAULT_LIMITS

    def content_and_label(self, row: Any) -> tuple[Question, Any]:
        """Return the image with its prompt, and what is right to say."""
        if row[self.column] in (None, ""):
            raise SkipSample("it has no image")
        right, prompt = self.label_and_prompt(row)
        return Question(open_image(self.stored(row), self.media_limits), prompt), right

    def label_and_prompt(self, row: Any) -> tuple[Any, str]:
        """Return what is right to say, and what the model is asked."""
        prompt, right = self.read_row(row)
        return right, prompt


@dataclass(frozen=True)
class Question:
    """An RGB image, and what the model is asked about it."""

    image: Any
    prompt: str


@dataclass(frozen=True)
class OpenedRows:
    """One split of images with texts: undecoded rows drawn by `limit`, and the names of all columns."""

    opened: OpenedSplit
    column: str
    columns: list[str]


def open_rows(options: JobOptions) -> OpenedRows:
    """Open one split of images with texts.

    Raises:
        DataError: there is no such split, no image column, or the file is none of samples.
        SourceError: it looks like a folder and is none.
    """
    rows = in_memory(options)
    path = Path(options.data).expanduser().absolute()
    if rows is None and path.suffix in READERS and not path.exists():
        raise DataError(f"There is no file {options.data}.")
    if rows is None and path.is_file():
        refuse_streaming(options.streaming, options.data, "a file of samples")
        opened = _open_table(path, file_split(path, options.split))
    elif rows is None and is_folder(options.data, "data set") and (tables := _tables(path)):
        refuse_streaming(options.streaming, options.data, "a folder of such files")
        split = choose_split(options.data, options.split, list(tables))
        opened = _open_table(tables[split], split)
    else:
        opened = open_data_set(rows, options, "Image")
    columns = _columns(opened.rows)
    image = _image_column(opened.rows, columns, options.data)
    return OpenedRows(replace(opened, rows=draw_rows(opened.rows, options.limit, options.seed)), image, columns)


def _open_table(path: Path, split: str) -> OpenedSplit:
    return OpenedSplit(read_table(path), split, (path.parent,))


def data_name(options: JobOptions) -> str:
    """Return what the data are called: a file by its stem, a folder by its name, a Hub id as it is."""
    path = Path(options.data).expanduser()
    return path.stem if path.is_file() else public_name(options.data)


def find_column(columns: Sequence[str], names: Sequence[str], content: str, source: str) -> str:
    """Return the first known column that there is.

    Raises:
        DataError: there is none; the message lists the columns.
    """
    column = first_of(names, columns)
    if column is None:
        raise DataError(
            f"The data in {source} have no column of {content}; it can be called {', '.join(names)}. The columns are "
            f"{', '.join(columns) or 'unknown'}."
        )
    return column


def as_values(value: Any, key: str = "") -> list[Any]:
    """Return one value or several as a list, texts stripped, without those that are empty.

    `value` is a string, a number, a list, a list of objects with `key`, or a list written out as a string.
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = _written_list(value)
    if isinstance(value, Mapping):
        value = value[key] if key in value else list(value.values())
    if not isinstance(value, (list, tuple)):
        value = [value]
    values = [item[key] if isinstance(item, Mapping) else item for item in value]
    values = [item.strip() if isinstance(item, str) else item for item in values]
    return [item for item in values if item is not None and str(item).strip()]


def first_values(row: Mapping[str, Any], columns: Sequence[str], key: str = "") -> list[Any]:
    """Return the values of the first of the columns that holds any."""
    return next((values for name in columns if (values := as_values(row.get(name), key))), [])


def first_texts(row: Mapping[str, Any], columns: Sequence[str], key: str = "") -> list[str]:
    """Return the values of the first of the columns that holds any, as texts."""
    return [str(value).strip() for value in first_values(row, columns, key)]


def read_table(path: Path) -> Table:
    """Read a file of samples; images become whole paths.

    Raises:
        DataError: the file cannot be read as samples; the message says what it needs.
    """
    if path.suffix not in READERS:
        raise DataError(f"{path.name} is no {', '.join(READERS)} file; give one, a folder, or a data set of the Hub.")
    try:
        rows = READERS[path.suffix](path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(
            f"{path.name} does not hold samples. It takes a list of objects, each with an image and its texts, or the "
            "object with `images` and `annotations` of COCO's captions."
        )
    column = find_column(_columns(Table(rows)), IMAGE_COLUMNS, "images", path.name)
    return Table({**row, column: _place(path.parent, row.get(column))} for row in rows)


def _read_json(path: Path) -> list[Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        return content if isinstance(content, list) else []
    if "images" not in content or not any("caption" in annotation for annotation in content.get("annotations", ())):
        return []
    captions = defaultdict(list)
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    return [{"image": image["file_name"], "captions": captions[image["id"]]} for image in content["images"]]


def _read_csv(path: Path) -> list[Any]:
    _, rows = read_csv(path)
    return [{name: _split(name, value) for name, value in row.items()} for row in rows]


READERS: dict[str, Callable[[Path], list[Any]]] = {".json": _read_json, ".jsonl": read_json_lines, ".csv": _read_csv}
"""By the suffix of a file of samples."""


def _split(name: str, value: str | None) -> Any:
    """Split a field whose column's name is a plural."""
    return split_values(value) if value and name in ("captions", "answers", "choices", "options") else value


def _tables(folder: Path) -> dict[str, Path]:
    """Return the files of samples in a folder by their split; `datasets`' own files are none."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in READERS and not file.name.startswith(".")]
    own = {"metadata", "dataset_dict", "dataset_info", "dataset_infos", "state", "classes"}
    tables: dict[str, Path] = {}
    for file in files:
        if file.stem not in own and tables.setdefault(file.stem, file) != file:
            raise DataError(
                f"{folder} holds both {tables[file.stem].name} and {file.name}; give one of them as --data."
            )
    return by_split(tables)


def _place(folder: Path, image: Any) -> Any:
    if not isinstance(image, str) or not image:
        return None
    try:
        return find_inside(image, (folder, folder / "images"))
    except PathError:  # the reason is told where the image is read
        return joined(folder, image)


def _columns(rows: Any) -> list[str]:
    names = (name for row in rows for name in row) if isinstance(rows, Table) else rows.features or ()
    return list(dict.fromkeys(names))


def _image_column(rows: Any, columns: Sequence[str], source: str) -> str:
    if isinstance(rows, Table):
        return find_column(columns, IMAGE_COLUMNS, "images", source)
    images = content_columns(rows, "Image")
    if not images:
        listed = ", ".join(f"{name}: {type(rows.features[name]).__name__}" for name in columns)
        raise DataError(f"The data in {source} have no image column; the columns are {listed}.")
    return images[0]


def _written_list(text: str) -> Any:
    if not (text.startswith("[") and text.endswith("]")):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text

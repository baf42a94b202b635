"""Folders of images with a metadata file, as `datasets` defines them: `metadata.jsonl`, `.csv` or `.parquet`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..left_out import LeftOut
from ..samples import first_line
from ..split_names import DataError, by_split, is_split_name
from .folders import is_kind, is_visible, walk
from .paths import PathError, find_inside, joined
from .text_files import ENCODING, read_json_lines

if TYPE_CHECKING:
    import datasets

FILE_NAME = "file_name"
"""The column of the path, from the folder of the metadata file; or one that ends in `_file_name`."""
IMAGE = "image"


def find_metadata(path: Path) -> list[Path]:
    """Return the metadata files of a folder of images."""
    files = [file for depth in ("", "*/", "*/*/") for file in sorted(path.glob(f"{depth}metadata.*"))]
    return [file for file in files if file.suffix in READERS and file.is_file() and is_visible(file, path)]


def open_metadata(path: Path, files: list[Path]) -> dict[str, tuple[datasets.Dataset, LeftOut]]:
    """Return the rows of the metadata files by split, with undecoded images, and the images that no row names.

    The split is the folder in `path` that holds the metadata file or, where the file lies in `path` itself, the image;
    `train` without such a folder.

    Raises:
        DataError: a metadata file cannot be read, or has no column of file names.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        for row in _read(file):
            rows.setdefault(_split(path, file, row[IMAGE]["path"]), []).append(row)
    named = {_found(row[IMAGE]["path"], path) for listed in rows.values() for row in listed}
    loose: dict[str, list[tuple[Path, str]]] = {}
    for image in walk(path):
        above = [file for file in files if image.is_relative_to(file.parent)]
        if above and is_kind(image, "Image") and str(image.absolute()) not in named:
            nearest = max(above, key=lambda file: len(file.parts))
            loose.setdefault(_split(path, nearest, str(image)), []).append((image, "not in the metadata"))
    return {
        split: (_to_data_set(listed, path), LeftOut.of(loose.get(name, ()), path))
        for split, (name, listed) in by_split({name: (name, listed) for name, listed in rows.items()}).items()
    }


def _split(root: Path, file: Path, image: str | None) -> str:
    folders = file.relative_to(root).parts[:-1]
    if folders:
        return folders[0]
    inside = Path(image).relative_to(root).parts[:-1] if image and Path(image).is_relative_to(root) else ()
    return inside[0] if inside and is_split_name(inside[0]) else "train"


def _found(image: str | None, root: Path) -> str | None:
    try:
        return find_inside(image, [root.absolute()]) if image else None
    except PathError:
        return None


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        rows = READERS[file.suffix](file)
    except Exception as error:  # pandas and pyarrow have no common class for theirs
        raise DataError(f"{file} cannot be read: {first_line(error)}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} does not hold objects, one a line, each with a {FILE_NAME}.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    column = (
        FILE_NAME if FILE_NAME in names else next((name for name in names if name.endswith(f"_{FILE_NAME}")), None)
    )
    if column is None:
        raise DataError(f"{file} has the columns {', '.join(map(str, names))}; it needs {FILE_NAME}.")
    return [
        {
            IMAGE: {"path": joined(file.parent, str(row[column])) if row.get(column) else None, "bytes": None},
            **{name: row.get(name) for name in names if name not in (column, IMAGE)},
        }
        for row in rows
    ]


def _read_csv(file: Path) -> list[dict[str, Any]]:
    import pandas

    table = pandas.read_csv(file, encoding=ENCODING)
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file).to_pylist()


READERS = {".jsonl": read_json_lines, ".csv": _read_csv, ".parquet": _read_parquet}


def _to_data_set(rows: list[dict[str, Any]], path: Path) -> datasets.Dataset:
    import datasets
    import pyarrow

    try:
        return datasets.Dataset.from_list(rows).cast_column(IMAGE, datasets.Image(decode=False))
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"The metadata in {path} have a column of several types: {first_line(error)}") from error

"""Class folders, `<split>/<class>/<file>`: what is visible in the folder is evaluated, or counted as left out.

Files are listed here rather than by `datasets`, which guesses splits from any name that contains "train" or "test",
drops folders such as `__x__`, and reads brackets in a path as a pattern. The class is the first folder under the
split; files may lie deeper. Hidden files and folders, whose names begin with a dot, are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..left_out import LeftOut
from ..split_names import DataError, by_split, choose_split, is_split_name
from .text_files import composed

SUFFIXES = {
    "Image": (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    ),
    "Video": (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg"),
    "Audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus", ".aac"),
}
"""By the feature of `datasets`, the files that hold it."""

DOCUMENTS = ("", ".md", ".txt", ".rst", ".csv", ".json", ".jsonl", ".yaml", ".yml")
"""Files that may lie beside splits and classes without being taken for samples."""

ONLY_SPLIT = "train"
"""The split of a folder without split folders, as in `datasets`."""


@dataclass(frozen=True)
class ClassFolders:
    """The files of one split, the name of the class of each, and what is left out."""

    files: list[Path]
    labels: list[str]
    left_out: LeftOut


def choose_folder(root: Path, split: str | None, kind: str) -> tuple[str, dict[str, Path]]:
    """Return the split that is meant, and the folders of all splits.

    Raises:
        DataError: there are no such files, no such split, or it is unclear what is a split.
    """
    folders = by_split(find_splits(root, split, kind))
    if not folders:
        raise DataError(nothing_there(root, kind))
    return choose_split(str(root), split, list(folders)), folders


def list_class_folders(root: Path, folder: Path, kind: str) -> ClassFolders:
    """List the samples of a split, whose folder is `root` or lies in it."""
    contents = [(file, place) for place in _folders(folder) for file in walk(place)]
    samples = [(file, composed(place.name)) for file, place in contents if is_kind(file, kind)]
    others = [(file, _type(file)) for file, _ in contents if not is_kind(file, kind)]
    left_out = LeftOut.of([*others, *_beside_classes(root, folder, kind)], root)
    return ClassFolders([file for file, _ in samples], [label for _, label in samples], left_out)


def all_classes(splits: Iterable[Path], kind: str) -> list[str]:
    """Return the names of the classes in any of the splits."""
    return sorted({composed(place.name) for split in splits for place in _folders(split) if _holds(place, kind)})


def find_splits(root: Path, split: str | None, kind: str) -> dict[str, Path]:
    """Return the folders of the splits by name; one that holds class folders itself is the only split.

    Raises:
        DataError: some folders hold files and others hold folders of files, so that splits and classes look alike.
    """
    folders = _folders(root)
    flat = [folder.name for folder in folders if any(is_kind(file, kind) for file in _files(folder))]
    nested = {folder.name: folder for folder in folders if any(_holds(place, kind) for place in _folders(folder))}
    named = [name for name in nested if is_split_name(name)]
    if named and split is None and any(not is_split_name(name) for name in flat):
        raise DataError(
            f"{root} holds {kind.lower()} files in {_listed(flat)} and folders of them in {_listed(named)}, so it is "
            f"unclear whether these are classes or splits. If {named[0]!r} is a split, say --split {named[0]}; if it "
            "is a class, move the files of its folders into it."
        )
    if nested and (named or not flat):
        return nested
    if flat and all(map(is_split_name, flat)) and not nested:
        raise DataError(
            f"{root / flat[0]} holds {kind.lower()} files and no class folders. It needs one folder a class: "
            f"{flat[0]}/<class>/<file>."
        )
    return {ONLY_SPLIT: root} if flat else {}


def walk(folder: Path) -> Iterator[Path]:
    """Yield the visible regular files in a folder and its folders, sorted; links are followed, loops left out."""
    yield from _walk(folder, (os.path.realpath(folder),))


def is_kind(file: Path, kind: str) -> bool:
    """Tell by its name whether a file holds an image, a clip or a recording."""
    return file.suffix.lower() in SUFFIXES[kind]


def is_visible(path: Path, root: Path) -> bool:
    """Tell whether no part of a path below `root` is hidden."""
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    for entry in _entries(folder):
        if not entry.is_dir():
            if entry.is_file():  # a named pipe would block whoever opens it
                yield Path(entry.path)
            continue
        real = os.path.realpath(entry.path)
        if real not in above:
            yield from _walk(Path(entry.path), (*above, real))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir()]


def _files(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.is_file()]


def _holds(folder: Path, kind: str) -> bool:
    return any(is_kind(file, kind) for file in walk(folder))


def _beside_classes(root: Path, split: Path, kind: str) -> Iterator[tuple[Path, str]]:
    """Yield the files beside class folders and splits that could be taken for samples, each with the reason."""
    for place in dict.fromkeys((root, split)):
        for file in _files(place):
            if is_kind(file, kind):
                yield file, "outside of class folders"
            elif file.suffix.lower() not in DOCUMENTS:
                yield file, _type(file)


def _type(file: Path) -> str:
    return f"of type {file.suffix.lower()}" if file.suffix else "without a type"


def nothing_there(root: Path, kind: str) -> str:
    """Return the message for a folder without samples, which counts what there is instead."""
    message = (
        f"No {kind.lower()} files in {root}. It needs one folder a split and one a class: "
        f"validation/<class>/<file>{SUFFIXES[kind][0]}"
    )
    other = LeftOut.of(((file, _type(file)) for file in walk(root)), root)
    also = "" if kind == "Image" else ", or validation.csv with the columns path and label"
    return f"{message}{also}." + (f" ({other}.)" if other else "")


def _listed(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(map(repr, names[:shown])) + (", ..." if len(names) > shown else "")

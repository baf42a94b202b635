"""Images with a map of numbers each: masks of classes, depths.

A folder holds, in any split or by itself, a folder `images` and one of maps beside it, or these two with a folder a
split inside; an image and its map have the same name but for the ending:

    validation/images/street.jpg    images/validation/street.jpg    images/street.jpg
    validation/masks/street.png     masks/validation/street.png     masks/street.png

A data set has a column of images and one of maps, which are images of one channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...hub.sources import is_folder, public_name
from ...media.limits import MediaLimits
from ...media.value_map import is_map, map_of_image, read_map
from ..options import JobOptions
from .columns import content_columns, first_of
from .files.folders import ONLY_SPLIT, is_kind, walk
from .files.paths import find_inside
from .image_text import Table
from .left_out import LeftOut
from .memory import in_memory, open_data_set
from .samples import Samples, SkipSample, stored_path
from .split_names import DataError, by_split, choose_split, refuse_streaming
from .splits import OpenedSplit, draw_rows, is_data_set, open_image

IMAGES = ("images", "image", "img")
"""What the folder of images may be called."""


@dataclass(frozen=True)
class MapKind:
    """A kind of maps.

    Attributes:
        name: what messages call one.
        names: what a folder of them, or a column, may be called.
    """

    name: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ImageWithMap:
    """An RGB image and its map of numbers (H, W)."""

    image: Any
    values: np.ndarray


@dataclass
class ImagesWithMaps(Samples):
    """Images with maps.

    Attributes:
        map_column: the column of maps.
        media_limits: sizes beyond which an image or a map is skipped.
        read_values: the numbers of a map as stored to what they mean; raises `SkipSample` where they mean nothing.
    """

    map_column: str
    media_limits: MediaLimits
    read_values: Callable[[np.ndarray], np.ndarray]

    def content_and_label(self, row: Any) -> tuple[ImageWithMap, int | None]:
        """Return the image with its map, and the bytes of the map's file."""
        image = open_image(self.stored(row), self.media_limits)
        values = self.read_values(self._stored_values(row[self.map_column]))
        return ImageWithMap(image, values), self.label_and_prompt(row)[0]

    def label_and_prompt(self, row: Any) -> tuple[int | None, None]:
        """Return the bytes of the map's file as what stands for it; `None` for maps of a data set."""
        path = row.get(self.map_column) if isinstance(row, Mapping) else None
        return (Path(path).stat().st_size if isinstance(path, str) else None), None

    def _stored_values(self, stored: Any) -> np.ndarray:
        if stored is None:
            raise SkipSample("it has no map")
        if hasattr(stored, "getbands"):  # an image that `datasets` or the caller has decoded
            return map_of_image(stored)
        content = stored.get("bytes") if isinstance(stored, dict) else None
        path = stored_path(stored)
        if content is None and path is None:
            raise SkipSample("it has no map")
        if content is None and self.roots is not None:
            path = find_inside(str(path), self.roots)
        return read_map(content if content is not None else str(path), self.media_limits)


def open_maps(options: JobOptions, kind: MapKind, read: Callable[[np.ndarray], np.ndarray]) -> ImagesWithMaps:
    """Open one split of images with maps, and draw the samples.

    Raises:
        DataError: there is no such split, no folder or column of maps; the message says what is needed.
        SourceError: the data look like a folder and are none.
    """
    path = Path(options.data).expanduser().absolute()
    rows = in_memory(options)
    if rows is None and is_folder(options.data, "data set") and not is_data_set(path):
        refuse_streaming(options.streaming, options.data, "a folder of files")
        opened, columns = _open_folder(path, options.split, kind)
    else:
        opened = open_data_set(rows, options, "Image")
        columns = _map_columns(opened.rows, kind, options.data)
    return ImagesWithMaps(
        public_name(options.data),
        opened.name,
        draw_rows(opened.rows, options.limit, options.seed),
        columns[0],
        columns[1],
        options.media_limits,
        read,
        roots=opened.roots,
        folder=opened.folder,
        left_out=opened.left_out,
    )


def _map_columns(rows: Any, kind: MapKind, source: str) -> tuple[str, str]:
    """Return the columns of images and of maps."""
    images = content_columns(rows, "Image")
    column = first_of(kind.names, images)
    others = [name for name in images if name != column]
    if column is None or not others:
        listed = ", ".join(f"{name}: {type(feature).__name__}" for name, feature in (rows.features or {}).items())
        raise DataError(
            f"The data in {source} need a column of images and one of {kind.name}s of the feature datasets.Image, "
            f"called {', '.join(kind.names)}; the columns are {listed or 'unknown'}."
        )
    return others[0], column


def _open_folder(root: Path, split: str | None, kind: MapKind) -> tuple[OpenedSplit, tuple[str, str]]:
    places = by_split(_find_pairs(root, kind))
    if not places:
        raise DataError(
            f"{root} holds no folder of images with one of {kind.name}s beside it. It needs "
            f"validation/{IMAGES[0]}/<name>.jpg and validation/{kind.names[0]}/<name>.png, or the same in "
            f"{IMAGES[0]}/validation and {kind.names[0]}/validation."
        )
    name = choose_split(str(root), split, list(places))
    images, maps = places[name]
    by_stem = {file.relative_to(maps).with_suffix(""): file for file in walk(maps) if is_map(file)}
    files = [file for file in walk(images) if is_kind(file, "Image")]
    matches = [(file, by_stem.get(file.relative_to(images).with_suffix(""))) for file in files]
    rows = Table({"image": str(file), "map": str(map_file)} for file, map_file in matches if map_file is not None)
    left_out = LeftOut.of(((file, f"without a {kind.name}") for file, map_file in matches if map_file is None), root)
    return OpenedSplit(rows, name, (root,), images, left_out), ("image", "map")


def _find_pairs(root: Path, kind: MapKind) -> dict[str, tuple[Path, Path]]:
    """Return the folders of images and of maps, by split."""
    own = _pair(root, kind)
    if own is None:
        inside = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
        return {folder.name: pair for folder in inside if (pair := _pair(folder, kind)) is not None}
    images, maps = own
    if any(is_kind(file, "Image") for file in images.iterdir() if file.is_file()):
        return {ONLY_SPLIT: own}
    splits = [folder.name for folder in sorted(images.iterdir()) if (maps / folder.name).is_dir()]
    return {name: (images / name, maps / name) for name in splits}


def _pair(folder: Path, kind: MapKind) -> tuple[Path, Path] | None:
    images = next((folder / name for name in IMAGES if (folder / name).is_dir()), None)
    maps = next((folder / name for name in kind.names if (folder / name).is_dir()), None)
    return None if images is None or maps is None else (images, maps)

"""Images with boxes: COCO's file of instances beside the images, or a data set's columns.

    validation.json    {"images": [{"id": 1, "file_name": "street.jpg"}],
                        "categories": [{"id": 3, "name": "car"}],
                        "annotations": [{"image_id": 1, "category_id": 3, "bbox": [x, y, width, height]}]}

The images lie beside the file, in `images` or in a folder of the split's name there. `--data` is the file, or a folder
of such files, one a split (`instances_val2017.json` is split `val2017`). A data set has a column of images and one of
`objects` with lists `bbox` and `category`, boxes as above.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...hub.sources import is_folder, public_name
from ...media.limits import MediaLimits
from ..options import JobOptions
from .columns import content_columns, first_of
from .files.paths import PathError, find_inside, joined
from .files.text_files import read_json
from .image_text import Table
from .memory import in_memory, open_data_set
from .samples import Samples, SkipSample
from .split_names import DataError, by_split, choose_split, file_split, refuse_streaming
from .splits import OpenedSplit, draw_rows, open_image

OBJECTS = ("objects", "annotations")
CATEGORIES = ("category", "categories", "label", "labels", "category_id")
BOXES = ("bbox", "boxes", "bboxes")
PREFIX = "instances_"
"""What COCO's own files begin with."""


@dataclass(frozen=True)
class OpenedBoxes:
    """One split of images with boxes: rows, the column of images, and the names of the categories."""

    opened: OpenedSplit
    column: str
    names: list[str]


@dataclass
class ImagesWithBoxes(Samples):
    """Images with boxes.

    Attributes:
        names: of the categories by their number.
        to_model: the model's index of each name.
        media_limits: sizes beyond which an image is skipped.
    """

    names: Sequence[str]
    to_model: Mapping[str, int]
    media_limits: MediaLimits

    def content_and_label(self, row: Any) -> tuple[Any, list[list[float]]]:
        """Return the image and its boxes."""
        label, _ = self.label_and_prompt(row)
        return open_image(self.stored(row), self.media_limits), label

    def label_and_prompt(self, row: Any) -> tuple[list[list[float]], None]:
        """Return each box as the model's class, corners x0, y0, x1, y1, and whether it is a crowd."""
        objects = next((row[name] for name in OBJECTS if row.get(name) is not None), None)
        if objects is None:
            raise SkipSample("it has no list of objects")
        columns = dict(_columns(objects))
        boxes = columns[first_of(BOXES, list(columns)) or "bbox"]
        categories = columns[first_of(CATEGORIES, list(columns)) or "category"]
        crowds = columns.get("iscrowd") or [0] * len(boxes)
        return [
            [self._class(name), float(x), float(y), float(x + width), float(y + height), int(bool(crowd))]
            for name, (x, y, width, height), crowd in zip(categories, boxes, crowds)
        ], None

    def _class(self, category: Any) -> int:
        return self.to_model[category if isinstance(category, str) else self.names[category]]


def open_boxes(options: JobOptions) -> OpenedBoxes:
    """Open one split of images with boxes, and draw the samples.

    Raises:
        DataError: there is no such split or no boxes; the message says what is needed.
        SourceError: the data look like a folder and are none.
    """
    rows, path = in_memory(options), Path(options.data).expanduser().absolute()
    if rows is None and path.suffix == ".json" and path.is_file():
        refuse_streaming(options.streaming, options.data, "a file of boxes")
        boxes = _open_file(path, None, file_split(path, options.split))
    elif rows is None and is_folder(options.data, "data set") and (files := _files(path)):
        refuse_streaming(options.streaming, options.data, "a folder of such files")
        split = choose_split(options.data, options.split, list(files))
        boxes = _open_file(*files[split], split)
    else:
        opened = open_data_set(rows, options, "Image")
        boxes = OpenedBoxes(opened, content_columns(opened.rows, "Image")[0], _names(opened.rows, options.data))
    rows = draw_rows(boxes.opened.rows, options.limit, options.seed)
    return replace(boxes, opened=replace(boxes.opened, rows=rows))


def boxes_of(options: JobOptions, annotations: OpenedBoxes, to_model: Mapping[str, int]) -> ImagesWithBoxes:
    """Return the samples of an opened split, given the model's index of each category."""
    path = Path(options.data)
    return ImagesWithBoxes(
        path.stem if path.suffix == ".json" else public_name(options.data),
        annotations.opened.name,
        annotations.opened.rows,
        annotations.column,
        annotations.names,
        to_model,
        options.media_limits,
        roots=annotations.opened.roots,
    )


def _columns(objects: Any) -> Mapping[str, list[Any]]:
    """Return lists by name, of an object of lists or a list of objects."""
    if isinstance(objects, Mapping):
        return objects
    return {name: [each[name] for each in objects] for name in (objects[0] if objects else ("bbox", "category"))}


def _names(rows: Any, source: str) -> list[str]:
    """Return the names of the categories of a data set.

    Raises:
        DataError: there is no column of objects, or their categories have no names.
    """
    features = rows.features or {}
    column = first_of(OBJECTS, list(features))
    objects = features[column] if column is not None else {}
    objects = getattr(objects, "feature", objects)
    inner = dict(objects) if isinstance(objects, Mapping) else {}
    name = first_of(CATEGORIES, list(inner))
    feature: Any = inner[name] if name is not None else None
    feature = getattr(feature, "feature", feature)
    if getattr(feature, "names", None):
        return list(feature.names)
    if getattr(feature, "dtype", None) == "string" and name is not None and hasattr(rows, "select_columns"):
        values = rows.select_columns([column])[:][column]
        return sorted({label for each in values for label in _columns(each)[name]})
    raise DataError(
        f"The data in {source} need a column {OBJECTS[0]!r} with lists {BOXES[0]!r} (x, y, width, height) and "
        f"{CATEGORIES[0]!r} (a ClassLabel or texts); the columns are {', '.join(features) or 'unknown'}."
    )


def _files(folder: Path) -> dict[str, tuple[Path, Any]]:
    """Return by split the files of boxes in a folder, or in `annotations` there, with what those hold that were read.

    COCO's own files tell by their names, and may be large; where there are none, every file is read once.
    """
    files = [*sorted(folder.glob("*.json")), *sorted((folder / "annotations").glob("*.json"))]
    named = {file.stem.removeprefix(PREFIX): (file, None) for file in files if file.name.startswith(PREFIX)}
    contents = ((file, _read_instances(file)) for file in files) if not named else ()
    return by_split(named or {file.stem: (file, content) for file, content in contents if content is not None})


def _read_instances(file: Path) -> Any:
    """Return what a file of instances holds; `None` for other files."""
    try:
        content = read_json(file)
        return content if {"images", "annotations", "categories"} <= set(content) else None
    except (ValueError, TypeError):
        return None


def _open_file(path: Path, content: Any, split: str) -> OpenedBoxes:
    """Return the boxes of a file of instances, which is read unless its content is there.

    Raises:
        DataError: it is none.
    """
    try:
        content = read_json(path) if content is None else content
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        objects: dict[Any, list[Any]] = defaultdict(list)
        for each in content["annotations"]:
            box = {"bbox": [float(value) for value in each["bbox"]], "iscrowd": each.get("iscrowd", 0)}
            objects[each["image_id"]].append({"category": names[each["category_id"]], **box})
        images = [(image["id"], image["file_name"]) for image in content["images"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path.name} cannot be read as COCO's instances ({type(error).__name__}: {error}); it takes an object "
            "with `images`, `categories` and `annotations`."
        ) from error
    folder = path.parent.parent if path.parent.name == "annotations" else path.parent
    places = (folder, folder / "images", folder / split, folder / "images" / split)
    rows = Table({"image": _place(folder, places, name), "objects": objects[number]} for number, name in images)
    return OpenedBoxes(OpenedSplit(rows, split, (folder,)), "image", sorted(set(names.values())))


def _place(folder: Path, places: Sequence[Path], name: str) -> str:
    try:
        return find_inside(name, places)
    except PathError:  # the reason is told where the image is read
        return joined(folder, name)

"""Open labelled images from the Hub or a local folder: a split, its columns and labels, and a draw of samples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...hub.sources import is_folder
from ...media.image import read_image
from ..options import OptionError
from .labels import ClassNames
from .samples import SkipSample, first_line
from .shards import has_shards, open_shards

if TYPE_CHECKING:
    import datasets
    from PIL import Image

logger = logging.getLogger(__name__)

PREFERRED_SPLITS = ("validation", "test")
"""Taken in this order where no split is asked for."""

LABEL_COLUMNS = ("label", "labels", "fine_label")
SHUFFLE_BUFFER = 1000
"""Samples that a streamed data set is shuffled among, before the first `limit` are taken."""


class DataError(ValueError):
    """The data set, its split or its columns are not as needed; the message says what to do."""


def open_split(source: str, split: str | None = None, *, streaming: bool = False) -> tuple[Any, str]:
    """Open one split of a Hub data set or a local folder with `datasets`; return it with the split's name.

    A local folder holds one folder a split and one folder a class below (`validation/<class>/x.jpg`), Parquet files,
    WebDataset shards (see `shards`), or what `Dataset.save_to_disk` wrote. As everywhere in `datasets`, a folder `val`
    is split `validation`.

    Raises:
        SourceError: it looks like a folder and is none.
        DataError: nothing is there, it holds no data, or it has no such split; the message names those it has.
    """
    splits = _open_folder(Path(source), streaming) if is_folder(source, "data set") else _open_hub(source, streaming)
    name = choose_split(source, split, list(splits))
    return splits[name], name


def take(rows: Any, limit: int | None, seed: int) -> Any:
    """Return `limit` samples drawn at random with `seed`, in their old order; a stream is shuffled in a buffer."""
    if limit is None:
        return rows
    if not hasattr(rows, "__len__"):
        return rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER).take(limit)
    if limit >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit]))


def refuse_streaming(streaming: bool, source: str, what: str) -> None:
    """Refuse to stream what is read piece by piece as it is.

    Raises:
        OptionError: it is to be streamed.
    """
    if streaming:
        raise OptionError(
            f"--streaming means nothing to {source}, {what}, which is read as it is needed; it is for data sets of "
            "the Hub, Parquet files and shards. Leave it out."
        )


def file_split(path: Path, split: str | None) -> str:
    """Return the split of a single file of samples: its own name, which alone may be asked for.

    Raises:
        DataError: another one is asked for.
    """
    if split not in (None, path.stem, *(["validation"] if path.stem == "val" else [])):
        raise DataError(
            f"{path.name} is one file, whose samples are its split {path.stem!r}, and not {split!r}. Leave --split "
            "out, or give the folder of the files."
        )
    return path.stem


def image_and_label_columns(rows: Any, source: str) -> tuple[str, str]:
    """Return the names of the image column and the label column.

    Raises:
        DataError: there is none; the message lists the columns.
    """
    import datasets

    features = rows.features or {}
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = _label_columns(rows)
    if images and labels:
        return images[0], labels[0]
    missing = "an image column" if not images else f"a label column ({', '.join(LABEL_COLUMNS)} or any ClassLabel)"
    columns = ", ".join(f"{name}: {type(feature).__name__}" for name, feature in features.items())
    raise DataError(
        f"The data in {source} lack {missing}; the columns are {columns or 'unknown'}. A local folder of images needs "
        "one folder a class: validation/<class>/<image>."
    )


def label_column(rows: Any, source: str) -> str:
    """Return the name of the label column.

    Raises:
        DataError: there is none; the message lists the columns.
    """
    found = _label_columns(rows)
    if not found:
        raise DataError(
            f"The data in {source} have no label column ({', '.join(LABEL_COLUMNS)} or any ClassLabel); the columns "
            f"are {', '.join(rows.features or {})}."
        )
    return found[0]


def _label_columns(rows: Any) -> list[str]:
    import datasets

    features = rows.features or {}
    named = [name for name in LABEL_COLUMNS if name in features]
    return named + [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]


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
        return list(feature.names)
    is_text = feature.dtype == "string"
    if described is not None and not is_text and described.by_index:
        return list(described.by_index)
    if described is not None and is_text and not hasattr(rows, "unique"):
        return list(described.names)
    if not is_text or not hasattr(rows, "unique"):
        what = "strings in a stream" if is_text else f"{feature.dtype} without names"
        raise DataError(
            f"The labels in column {column!r} of {source} are {what}, so they cannot be matched to the model's by "
            "name. Put a classes.csv (columns index,label,name) or a classnames.txt (a name a line, in the order of "
            "the numbers) beside the data, use --labels, or cast the column to ClassLabel with names."
        )
    found = {name for names in rows[column] for name in names or ()} if several else set(rows.unique(column))
    return sorted(name for name in found if name)


def open_image(stored: Any) -> Image.Image:
    """Return an image as RGB: one that is decoded already, or what `datasets` stores of an undecoded one.

    Raises:
        SkipSample: there is none.
        OSError, SyntaxError: PIL cannot decode it; a broken one may raise others.
    """
    from PIL import Image

    if isinstance(stored, Image.Image):  # `datasets` has turned what it decodes
        return stored.convert("RGB")
    if stored is None or (stored["path"] is None and stored["bytes"] is None):
        raise SkipSample("it has no image")
    return read_image(stored["path"] if stored["bytes"] is None else stored["bytes"])


def undecoded(rows: Any, image_column: str) -> Any:
    """Return `rows` with images as stored bytes or paths, so that an unreadable one does not end the iteration."""
    import datasets

    return rows.cast_column(image_column, datasets.Image(decode=False))


def _open_folder(path: Path, streaming: bool) -> dict[str, Any]:
    import datasets

    path = path.expanduser()
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        refuse_streaming(streaming, str(path), "a data set on disk")
        saved = datasets.load_from_disk(str(path))
        return dict(saved) if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    if has_shards(path):
        return open_shards(path, streaming)
    try:
        if any(path.rglob("*.parquet")):
            return dict(datasets.load_dataset(str(path), streaming=streaming))
        # `datasets` drops the labels of a folder with a single class unless told not to; a metadata file, which may
        # hold labels itself, must not be overruled.
        drop_labels = None if any(path.rglob("metadata.*")) else False
        folder = datasets.load_dataset("imagefolder", data_dir=str(path), drop_labels=drop_labels, streaming=streaming)
        return dict(folder)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"No images in {path}: {first_line(error)} It needs one folder a split and one a class: "
            "validation/<class>/<image>."
        ) from error


def _open_hub(source: str, streaming: bool) -> dict[str, datasets.Dataset]:
    import datasets

    try:
        return dict(datasets.load_dataset(source, streaming=streaming))
    except (OSError, ValueError) as error:
        raise DataError(
            f"Cannot open the data set {source!r}: {first_line(error)} There is no local folder of that name either; "
            "check the id, the network and, for a gated data set, `hf auth login`."
        ) from error


def choose_split(source: str, split: str | None, available: list[str]) -> str:
    """Return the split that is meant among those there are; "val" is "validation".

    Raises:
        DataError: there is no such split, or several and none is asked for.
    """
    if split is None:
        split = next((name for name in PREFERRED_SPLITS if name in available), available[0])
        if split not in PREFERRED_SPLITS and len(available) > 1:
            raise DataError(f"{source} has the splits {', '.join(map(repr, available))}; choose one with --split.")
    elif split == "val" and "val" not in available and "validation" in available:
        logger.info("Split 'val' of %s is called 'validation'.", source)
        split = "validation"
    if split not in available:
        raise DataError(
            f"{source} has no split {split!r}; it has {', '.join(map(repr, available))}. "
            "(A folder with class folders and no split folders has only 'train'.)"
        )
    return split

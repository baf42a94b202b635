"""Open one split of images, clips or recordings from the Hub or a local folder, and draw samples of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...hub.sources import is_folder, not_opened
from ...media.image import read_image, to_rgb
from ...media.limits import DEFAULT_LIMITS, MediaLimits
from .columns import content_columns
from .files.folders import all_classes, choose_folder, list_class_folders
from .files.metadata import find_metadata, open_metadata
from .files.shards import find_shards, open_parquet, open_shards
from .left_out import LeftOut
from .samples import SkipSample
from .split_names import DataError, choose_split, refuse_streaming

if TYPE_CHECKING:
    from PIL import Image

SHUFFLE_BUFFER = 1000
"""Samples that a streamed data set is shuffled among, before the first `limit` are taken."""


@dataclass(frozen=True)
class OpenedSplit:
    """One split of a data set, before samples are drawn.

    Attributes:
        rows: a data set of `datasets`, map-style or streamed, with undecoded contents.
        name: what the split is called.
        roots: the folders that the paths of contents must lie in; `None` for rows that the caller made.
        folder: the folder of the split, where it has one of its own.
        left_out: files in that folder that are no samples.
    """

    rows: Any
    name: str
    roots: Sequence[Path] | None
    folder: Path | None = None
    left_out: LeftOut = field(default_factory=LeftOut)


def open_split(
    source: str,
    split: str | None = None,
    *,
    kind: str = "Image",
    streaming: bool = False,
) -> OpenedSplit:
    """Open one split of a Hub data set or a local folder.

    A local folder holds one folder a split and one folder a class below (`validation/<class>/x.jpg`; see `folders`),
    Parquet files, WebDataset shards (see `shards`), what `Dataset.save_to_disk` wrote, or images with a metadata file.
    As everywhere in `datasets`, a folder `val` is split `validation`.

    Args:
        source: Hub id or folder.
        split (`str`, *optional*): the split; else validation or test, whichever there is.
        kind: what the files hold, a key of `folders.SUFFIXES`.
        streaming: read a Hub data set or shards without a copy.

    Raises:
        SourceError: it looks like a folder and is none.
        DataError: nothing is there, it holds no data, or it has no such split; the message names those it has.
    """
    if not is_folder(source, "data set"):
        splits = _open_hub(source, streaming)
        name = choose_split(source, split, list(splits))
        return OpenedSplit(undecoded(splits[name], kind), name, _hub_folders(source))
    path = Path(source).expanduser().absolute()
    saved = _open_saved(path, streaming)
    if saved:
        name = choose_split(source, split, list(saved))
        return OpenedSplit(undecoded(saved[name], kind), name, (path,))
    metadata = find_metadata(path) if kind == "Image" else []
    if metadata:
        tables = open_metadata(path, metadata)
        name = choose_split(source, split, list(tables))
        rows, left_out = tables[name]
        return OpenedSplit(rows.to_iterable_dataset() if streaming else rows, name, (path,), None, left_out)
    name, folders = choose_folder(path, split, kind)
    return open_class_folders(path, name, folders, kind, streaming)[0]


def draw_rows(rows: Any, limit: int | None, seed: int) -> Any:
    """Return `limit` samples drawn at random with `seed`; a stream is shuffled in a buffer.

    They come in the order in which they are drawn, so that a larger limit adds samples behind the same ones.
    """
    if limit is None:
        return rows
    if not hasattr(rows, "__len__"):
        return rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER).take(limit)
    return rows.select(drawn(len(rows), limit, seed))


def drawn(count: int, limit: int, seed: int) -> np.ndarray:
    """Return the positions, of `count`, of the first `limit` samples of a random order."""
    return np.random.default_rng(seed).permutation(count)[:limit]


def open_image(stored: Any, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """Return an image as RGB: one that is decoded already, its path, or what `datasets` stores of an undecoded one.

    Raises:
        SkipSample: there is none.
        ImageError, MediaLimitError: it cannot be decoded, or is larger than `limits` admits.
    """
    from PIL import Image

    if isinstance(stored, Image.Image):  # `datasets` has turned what it decodes
        return to_rgb(stored)
    if isinstance(stored, (str, Path)):
        return read_image(stored, limits)
    if stored is None or (stored["path"] is None and stored["bytes"] is None):
        raise SkipSample("it has no image")
    return read_image(stored["path"] if stored["bytes"] is None else stored["bytes"], limits)


def undecoded(rows: Any, kind: str) -> Any:
    """Return `rows` with contents as stored bytes or paths, so that an unreadable one does not end the iteration."""
    import datasets

    for column in content_columns(rows, kind):
        rows = rows.cast_column(column, getattr(datasets, kind)(decode=False))
    return rows


def is_data_set(path: Path) -> bool:
    """Tell whether a folder holds shards or what `Dataset.save_to_disk` wrote, rather than files of samples."""
    return _is_saved(path) or bool(find_shards(path, ".tar") or find_shards(path, ".parquet"))


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _open_saved(path: Path, streaming: bool) -> dict[str, Any]:
    """Open what `datasets` reads itself, by split; nothing if the folder holds plain files."""
    import datasets

    if _is_saved(path):
        refuse_streaming(streaming, str(path), "a data set on disk")
        saved = datasets.load_from_disk(str(path))
        return dict(saved) if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    for suffix, open_files in ((".tar", open_shards), (".parquet", open_parquet)):
        shards = find_shards(path, suffix)
        if shards:
            return open_files(path, shards, streaming)
    return {}


def open_class_folders(
    path: Path, split: str, folders: dict[str, Path], kind: str, streaming: bool = False
) -> tuple[OpenedSplit, tuple[str, str]]:
    """Open one of the splits in `folders`; return it with the names of its columns of contents and labels."""
    import datasets

    listed = list_class_folders(path, folders[split], kind)
    paths = [str(file) for file in listed.files]
    if kind == "Image":
        # Images are matched with the classes of all splits, as `datasets` does.
        label = datasets.ClassLabel(names=all_classes(folders.values(), kind))
        features = datasets.Features({"image": datasets.Image(decode=False), "label": label})
        contents = [{"path": path, "bytes": None} for path in paths]
        rows = datasets.Dataset.from_dict({"image": contents, "label": listed.labels}, features=features)
    else:  # the features of `datasets` for clips and sound need torchcodec
        rows = datasets.Dataset.from_dict({"path": paths, "label": listed.labels})
    opened = rows.to_iterable_dataset() if streaming else rows
    columns = ("image" if kind == "Image" else "path", "label")
    return OpenedSplit(opened, split, (path,), folders[split], listed.left_out), columns


def _open_hub(source: str, streaming: bool) -> dict[str, Any]:
    import datasets

    try:
        return dict(datasets.load_dataset(source, streaming=streaming))
    except (OSError, ValueError) as error:
        raise DataError(not_opened(source, "data set", error)) from error


def _hub_folders(source: str) -> list[Path]:
    """Return where the files of a Hub data set are cached."""
    import datasets
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"datasets--{source.replace('/', '--')}"
    extracted = (datasets.config.DOWNLOADED_DATASETS_PATH, datasets.config.EXTRACTED_DATASETS_PATH)
    return [folder.absolute() for folder in (repository, *map(Path, extracted))]

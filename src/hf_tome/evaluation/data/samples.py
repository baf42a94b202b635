"""Labelled samples of one split, read while they are iterated over; what cannot be read is kept with the reason."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .files.paths import PathError, find_inside
from .left_out import LeftOut

logger = logging.getLogger(__name__)

Label = int | tuple[int, ...]
"""The model's index of the right class, or of all that are right where there may be several."""


@dataclass(frozen=True)
class Sample:
    """One readable, labelled sample; `position` is its place in the split."""

    name: str
    content: Any
    """An RGB image, the views of a clip or the samples of a recording, as the task decodes them."""
    label: Any
    """A `Label`, or the texts that are right."""
    position: int = 0


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out, and why."""

    sample: str
    reason: str
    position: int = 0


class SampleInfo(NamedTuple):
    """What is known of a sample before its content is read; without a label it will be skipped."""

    name: str
    label: Any
    prompt: str | None = None


class SkipSample(ValueError):
    """What a sample lacks, in words that can stand alone as the reason to skip it."""


@dataclass
class Samples(ABC):
    """Samples of one split.

    Attributes:
        name, split: where the samples are from.
        rows: rows of a data set, map-style or streamed, with undecoded contents.
        column: the column of contents, which name the samples.
        roots: the folders that the paths of contents must lie in; `None` for rows that the caller made.
        folder: the folder of the split, where samples are named by their paths in it.
        left_out: files in the folder of the data that are no samples.
    """

    name: str
    split: str
    rows: Any
    column: str
    roots: Sequence[Path] | None = field(default=None, kw_only=True)
    folder: Path | None = field(default=None, kw_only=True)
    left_out: LeftOut = field(default_factory=LeftOut, kw_only=True)

    def __len__(self) -> int:
        """Return the number of samples, unreadable ones included; 0 where a stream does not tell."""
        return len(self.rows) if hasattr(self.rows, "__len__") else 0

    def __iter__(self) -> Iterator[Sample]:
        return (entry for entry in self.read() if isinstance(entry, Sample))

    def listed(self) -> list[SampleInfo] | None:
        """Return what is known of every sample without reading its content; `None` for a stream."""
        if not hasattr(self.rows, "__len__"):
            return None
        stored, rows = _stored_paths(self.rows, self.column), _without_contents(self.rows)
        names = (sample_name(path, position, self.folder) for position, path in enumerate(stored))
        return [SampleInfo(name, *self._label_and_prompt(row)) for name, row in zip(names, rows, strict=True)]

    def read(self, wanted: Callable[[int], bool] = lambda position: True) -> Iterator[Sample | Skipped]:
        """Yield the samples at the wanted positions, in order, and those that cannot be read with the reason."""
        for position, row in self._rows(wanted):
            entry = self._sample(row, sample_name(row[self.column], position, self.folder), position)
            if isinstance(entry, Skipped):
                logger.warning("Skipped %s: %s", entry.sample, entry.reason)
            yield entry

    def stored(self, row: Any) -> Any:
        """Return the undecoded content of a row, its path found inside `roots`; contents with bytes as they are.

        Raises:
            PathError: the path is not to be opened.
        """
        stored = row[self.column]
        path = stored_path(stored)
        if self.roots is None or path is None or (isinstance(stored, dict) and stored.get("bytes") is not None):
            return stored
        inside = find_inside(path, self.roots)
        return {**stored, "path": inside} if isinstance(stored, dict) else inside

    @abstractmethod
    def content_and_label(self, row: Any) -> tuple[Any, Any]:
        """Return what a row holds, decoded; whatever this raises is the reason to skip the sample."""

    @abstractmethod
    def label_and_prompt(self, row: Any) -> tuple[Any, str | None]:
        """Return what a row holds beside its content, which need not be there; raises as `content_and_label` does."""

    def _label_and_prompt(self, row: Any) -> tuple[Any, str | None]:
        try:
            return self.label_and_prompt(row)
        except Exception:  # the reason is told where the sample is read
            return None, None

    def _rows(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Any]]:
        if hasattr(self.rows, "__len__"):
            yield from ((position, self.rows[position]) for position in range(len(self.rows)) if wanted(position))
        else:  # a stream has to be read through
            yield from ((position, row) for position, row in enumerate(self.rows) if wanted(position))

    def _sample(self, row: Any, name: str, position: int) -> Sample | Skipped:
        try:
            return Sample(name, *self.content_and_label(row), position)
        except ImportError:
            raise  # what is missing is not the sample
        except (SkipSample, PathError) as error:
            return Skipped(name, str(error), position)
        except Exception as error:  # PIL and PyAV raise a dozen kinds, SyntaxError among them
            return Skipped(
                name, f"{type(error).__name__}: {_without_path(error, row[self.column], self.roots)}", position
            )


@dataclass
class LabelledSamples(Samples):
    """Samples with a label.

    Attributes:
        label_column: the column of labels.
        model_label: the model's index of what stands in `label_column`.
        decode: stored contents to what the task takes.
    """

    label_column: str
    model_label: Callable[[Any], Label]
    decode: Callable[[Any], Any]

    def content_and_label(self, row: Any) -> tuple[Any, Label]:
        """Return the decoded content, and the model's index of the label."""
        label, _ = self.label_and_prompt(row)
        return self.decode(self.stored(row)), label

    def label_and_prompt(self, row: Any) -> tuple[Label, None]:
        """Return the model's index of the label; there is no prompt."""
        label = row[self.label_column]
        if label is None or label == -1 or label == []:
            raise SkipSample("it has no label")
        return self.model_label(label), None


def stored_path(stored: Any) -> str | None:
    """Return the path in what `datasets` stores for an undecoded image, clip or recording."""
    if isinstance(stored, str):
        return stored
    return stored.get("path") if isinstance(stored, dict) else None


def sample_name(stored: Any, position: int, folder: Path | None = None) -> str:
    """Name a sample by its path in `folder`, else by the last parts of its path, else by its position.

    A name is the same on every machine.
    """
    path = stored_path(stored)
    if not path:
        return f"sample {position}"
    if folder is not None and Path(path).is_relative_to(folder):
        return Path(path).relative_to(folder).as_posix()
    return "/".join(Path(path).parts[-2:])


def _stored_paths(rows: Any, column: str) -> Iterable[Any]:
    """Return what names the samples, without the contents: reading those of a whole data set takes minutes."""
    if not hasattr(rows, "select_columns"):
        return (row[column] for row in rows)
    flat = rows.select_columns([column]).flatten()
    path = next((name for name in (f"{column}.path", column) if name in flat.column_names), None)
    if path is None or getattr(flat.features[path], "dtype", None) not in ("string", "large_string"):
        return [None] * len(rows)
    return flat.select_columns([path])[:][path]


def _without_contents(rows: Any) -> Iterable[Any]:
    """Return the rows of a data set without its images, clips and recordings; a list's as they are."""
    if not hasattr(rows, "select_columns"):
        return rows
    columns = [name for name, feature in rows.features.items() if not hasattr(feature, "decode_example")]
    if not columns:
        return [{}] * len(rows)
    values = rows.select_columns(columns)[:]
    return (dict(zip(columns, row)) for row in zip(*(values[name] for name in columns)))


def first_line(error: Exception) -> str:
    """Return the first line of an error, as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if lines[0].endswith(".") else lines[0] + "."


def _without_path(error: Exception, stored: Any, roots: Sequence[Path] | None) -> str:
    text, path = first_line(error), stored_path(stored)
    if path:
        text = text.replace(str(path), Path(path).name)
    for root in roots or ():
        text = text.replace(f"{root}{os.sep}", "")
    return "cannot identify image file" if "cannot identify image file" in text else text

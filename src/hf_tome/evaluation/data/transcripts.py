"""Recordings with what is said in them: a list of files beside them, or a data set's columns.

    test.csv             path,text          metadata.jsonl    {"file_name": "a.wav", "transcription": "hello"}
                         a.wav,hello

`--data` is the list (CSV, JSON or JSONL), or a folder of such lists, one a split; a list `metadata` is the folder's
only split. Paths are from the list's folder. A data set has a column of the feature `datasets.Audio` and one of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...hub.sources import is_folder, public_name
from ..options import JobOptions
from .columns import content_columns, first_of
from .files.folders import ONLY_SPLIT
from .files.paths import joined
from .files.text_files import read_csv, read_json, read_json_lines
from .image_text import Table
from .memory import in_memory, open_data_set
from .samples import Samples, SkipSample
from .split_names import DataError, by_split, choose_split, file_split, refuse_streaming
from .splits import OpenedSplit, draw_rows

AUDIO = ("path", "file_name", "audio", "file", "audio_path")
TEXTS = ("text", "transcription", "transcript", "sentence", "normalized_text", "raw_text")
METADATA = "metadata"


def _csv_rows(path: Path) -> list[Any]:
    return read_csv(path)[1]


READERS: dict[str, Callable[[Path], Any]] = {".csv": _csv_rows, ".json": read_json, ".jsonl": read_json_lines}


@dataclass
class Transcripts(Samples):
    """Recordings with transcripts.

    Attributes:
        text_column: the column of transcripts.
        decode: a stored recording to what the task takes.
    """

    text_column: str
    decode: Callable[[Any], Any]

    def content_and_label(self, row: Any) -> tuple[Any, list[str]]:
        """Return the recording, and its transcript as the only right text."""
        right, _ = self.label_and_prompt(row)
        if row[self.column] in (None, ""):
            raise SkipSample("it has no recording")
        return self.decode(self.stored(row)), right

    def label_and_prompt(self, row: Any) -> tuple[list[str], None]:
        """Return the transcript."""
        text = row[self.text_column]
        if not isinstance(text, str) or not text.strip():
            raise SkipSample("it has no transcript")
        return [text.strip()], None


def open_transcripts(options: JobOptions, decode: Callable[[Any], Any]) -> Transcripts:
    """Open one split of recordings with transcripts, and draw the samples.

    Raises:
        DataError: there is no such split, no list or no columns; the message says what is needed.
        SourceError: the data look like a folder and are none.
    """
    rows, path = in_memory(options), Path(options.data).expanduser().absolute()
    name = public_name(options.data)
    if rows is None and path.suffix in READERS and path.is_file():
        refuse_streaming(options.streaming, options.data, "a list of files")
        name = path.stem
        opened, columns = _open_list(path, _rows(path), file_split(path, options.split))
    elif rows is None and is_folder(options.data, "data set") and (lists := _lists(path)):
        refuse_streaming(options.streaming, options.data, "a folder of files")
        split = choose_split(options.data, options.split, list(lists))
        opened, columns = _open_list(*lists[split], split)
    else:
        opened = open_data_set(rows, options, "Audio")
        columns = _columns(opened.rows, options.data)
    rows = draw_rows(opened.rows, options.limit, options.seed)
    return Transcripts(name, opened.name, rows, *columns, decode, roots=opened.roots)


def _columns(rows: Any, source: str) -> tuple[str, str]:
    """Return the columns of recordings and of transcripts."""
    features = rows.features or {}
    recordings, text = content_columns(rows, "Audio"), first_of(TEXTS, list(features))
    if recordings and text is not None:
        return recordings[0], text
    raise DataError(
        f"The data in {source} need a column of recordings (datasets.Audio) and one of transcripts "
        f"({', '.join(TEXTS)}); the columns are {', '.join(features) or 'unknown'}. A folder of files needs a list "
        "beside them: test.csv with the columns path and text."
    )


def _lists(folder: Path) -> dict[str, tuple[Path, list[Mapping[str, Any]]]]:
    """Return the lists of a folder with their rows, by split."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in READERS and file.is_file()]
    lists = {file.stem: (file, rows) for file in files if (rows := _rows(file))}
    if METADATA in lists:
        return {ONLY_SPLIT: lists[METADATA]}
    return by_split(lists)


def _rows(path: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a list, nothing where a file is none."""
    try:
        rows = READERS[path.suffix](path)
    except ValueError:
        return []
    is_list = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    return rows if is_list and first_of(AUDIO, list(rows[0])) and first_of(TEXTS, list(rows[0])) else []


def _open_list(path: Path, rows: list[Mapping[str, Any]], split: str) -> tuple[OpenedSplit, tuple[str, str]]:
    if not rows:
        raise DataError(
            f"{path.name} is no list of recordings with transcripts; it needs a column of paths ({', '.join(AUDIO)}) "
            f"and one of texts ({', '.join(TEXTS)})."
        )
    audio, text = (str(first_of(names, list(rows[0]))) for names in (AUDIO, TEXTS))
    listed = Table(
        {"path": joined(path.parent, row[audio]) if row.get(audio) else None, "text": row.get(text)} for row in rows
    )
    return OpenedSplit(listed, split, (path.parent,)), ("path", "text")

"""Text files as token ids, each cut to as many tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...options import JobOptions
from ..files.text_files import read_text
from ..left_out import LeftOut
from ..samples import Sample, SampleInfo, Skipped
from ..splits import DataError

SUFFIXES = (".txt", ".md")


@dataclass
class Texts:
    """Token ids of text files, each cut to as many tokens; see `job.Data`."""

    name: str
    files: Sequence[Path]
    encode: Callable[[str], list[int]]
    length: int
    split: str = "test"
    left_out: LeftOut = field(default_factory=LeftOut)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Sample]:
        return (entry for entry in self.read() if isinstance(entry, Sample))

    def listed(self) -> list[SampleInfo]:
        """Return the names of the files, and their bytes as what stands for a label."""
        return [SampleInfo(file.name, file.stat().st_size) for file in self.files]

    def read(self, wanted: Callable[[int], bool] = lambda position: True) -> Iterator[Sample | Skipped]:
        """Yield the texts at the wanted positions, and those that are too short, or no text, with the reason."""
        for position, file in enumerate(self.files):
            if not wanted(position):
                continue
            try:
                ids = self.encode(read_text(file))[: self.length]
            except (OSError, UnicodeDecodeError) as error:
                yield Skipped(file.name, str(error), position)
                continue
            if len(ids) < self.length:
                yield Skipped(file.name, f"it has {len(ids)} tokens, fewer than {self.length}", position)
            else:
                yield Sample(file.name, ids, file.stat().st_size, position)


def find_texts(options: JobOptions) -> list[Path]:
    """Return the text files of a folder, or the one file.

    Raises:
        DataError: there are none.
    """
    path = Path(options.data).expanduser()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    if not files:
        raise DataError(
            f"{options.data} has no text files; this task takes a folder of {' or '.join(SUFFIXES)} files, or one."
        )
    return files[: options.limit]

"""Files in the folder of a data set that are not evaluated: they are counted and listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LISTED = 20
"""Files that are listed by name; all are counted."""


@dataclass(frozen=True)
class LeftOut:
    """Files that are left out, counted by reason; `files` are the first of them."""

    counts: tuple[tuple[str, int], ...] = ()
    files: tuple[str, ...] = ()

    @classmethod
    def of(cls, files: Iterable[tuple[Path, str]], folder: Path) -> LeftOut:
        """Count files, each given with its reason."""
        counts: Counter[str] = Counter()
        listed: list[str] = []
        for file, reason in files:
            counts[reason] += 1
            if len(listed) < LISTED:
                listed.append(file.relative_to(folder).as_posix())
        return cls(tuple(counts.most_common()), tuple(listed))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LeftOut:
        """Return what `to_dict` gave."""
        return cls(tuple(values["counts"].items()), tuple(values["files"]))

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        total = sum(count for _, count in self.counts)
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts)
        return f"{total} file{'s' * (total != 1)} left out: {reasons}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"counts": dict(self.counts), "files": list(self.files)}

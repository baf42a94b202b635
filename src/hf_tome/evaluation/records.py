"""What each sample gave with each variant, appended to a file as it comes, so that a killed run can go on."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .processes import Processes
from .samples import Sample, Skipped

Record = dict[str, Any]
FILES = "samples*.jsonl"
SAMPLED_WEIGHTS = 16
"""Numbers of each weight that go into the fingerprint of a model."""


class ResumeError(ValueError):
    """The folder holds samples of a run that this one cannot go on with."""


@dataclass
class Records:
    """Results by variant and position in the split, of all processes once they are gathered.

    A file has a line for the run and then one for each sample and variant, each skipped sample and each variant's peak
    memory. A line that a kill cut short is dropped.
    """

    run: dict[str, Any]
    path: Path | None = None
    by_variant: dict[str, dict[int, Record]] = field(default_factory=lambda: defaultdict(dict))
    skipped: dict[int, Skipped] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    new: list[Record] = field(default_factory=list)

    @classmethod
    def open(cls, run: dict[str, Any], folder: Path | None, me: Processes) -> Records:
        """Read what earlier runs left in `folder`, and append to this process's own file there.

        Raises:
            ResumeError: the folder holds samples of another run.
        """
        if folder is None:
            return cls(run)
        folder.mkdir(parents=True, exist_ok=True)
        records = cls(run, folder / ("samples.jsonl" if me.is_main else f"samples-{me.rank}.jsonl"))
        for path in sorted(folder.glob(FILES)):
            records._read(path)
        me.wait()  # nobody writes before all have read
        if not records.path or not records.path.exists() or not records.path.stat().st_size:
            records._write([{"run": run}])
        return records

    def add(self, records: Sequence[Record]) -> None:
        """Keep records, in the file as well."""
        for record in records:
            self._keep(record)
        self.new += records
        self._write(records)

    def merge(self, records: Iterable[Record]) -> None:
        """Keep the records of other processes, which have files of their own."""
        for record in records:
            self._keep(record)

    def has(self, variant: str, samples: Iterable[Sample]) -> bool:
        """Tell whether all samples are done with a variant."""
        done = self.by_variant[variant]
        return all(sample.position in done for sample in samples)

    def is_finished(self, variants: Iterable[str], positions: Iterable[int]) -> bool:
        """Tell whether all positions are done with all variants, or skipped."""
        done = [self.by_variant[variant] for variant in variants]
        return all(p in self.skipped or all(p in positions_done for positions_done in done) for p in positions)

    def _keep(self, record: Record) -> None:
        if "skipped" in record:
            self.skipped[record["sample"]] = Skipped(record["name"], record["skipped"], record["sample"])
        elif "peak_memory_mib" in record:
            name = record["variant"]
            self.peaks[name] = max(record["peak_memory_mib"], self.peaks.get(name, 0))
        elif "variant" in record:
            self.by_variant[record["variant"]].setdefault(record["sample"], record)

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the run was killed
            if "run" in record and record["run"] != self.run:
                raise ResumeError(_explain(path, record["run"], self.run))
            self._keep(record)

    def _write(self, records: Sequence[Record]) -> None:
        if self.path is None or not records:
            return
        text = "".join(json.dumps(record) + "\n" for record in records)
        try:
            with self.path.open("a+b") as file:
                file.seek(max(file.seek(0, 2) - 1, 0))
                cut_short = file.read(1) not in (b"", b"\n")
                file.write(("\n" * cut_short + text).encode())
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: what was finished before is kept in {self.path.parent}; when there is room, the "
                "same command goes on from there",
            ) from error


def fingerprint(model: torch.nn.Module) -> str:
    """Return a few letters that differ between models of different weights, from some numbers of every weight."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED_WEIGHTS)].double().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {some.tolist()}".encode())
    return digest.hexdigest()[:16]


def _explain(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    differences = ", ".join(f"{name} {found.get(name)!r} instead of {wanted.get(name)!r}" for name in names)
    return f"{path} holds samples of another run: {differences}. Give another --out, or start afresh with --restart."

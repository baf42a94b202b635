"""Each sample's result with each variant, appended to a file as it comes, so that a killed run can resume."""

from __future__ import annotations

import errno
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...files import append_lines
from ...profiling.rounds import available_cores, doubt_of_load, load_average
from ..data.samples import Sample, SampleInfo, Skipped
from ..distributed import DistributedContext
from .fingerprint import Identity
from .record import Record
from .record_checks import Check, check_fields, record_kind

logger = logging.getLogger(__name__)

FILES = "samples*.jsonl"
WHAT_TO_DO = "Give another --out, or start afresh with --restart."
RIGHT = ("label", "right")
"""Under which of these a record holds what is right for its sample."""
COMPARED_PACKAGES = ("hf_tome", "torch", "transformers")
"""Another version of these may give other results; a run that resumes with one warns."""


class ResumeError(ValueError):
    """The folder holds samples of a run that this one cannot resume."""


@dataclass
class Records:
    """Results by variant and position in the split, of all processes once they are gathered.

    A file has a line for the run and one for each session, which is one call of `evaluate`, with its environment. Then
    there is one for each sample and variant, each skipped sample, each variant's peak memory, and each round of
    timing: the seconds a sample of all variants that ran interleaved on one batch. A line that a kill cut short is
    dropped. Of two records of the same, that of the later session counts.
    """

    identity: Identity = field(default_factory=Identity)
    path: Path | None = None
    session: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    load: float | None = None
    cores: float = 1
    by_variant: dict[str, dict[int, Record]] = field(default_factory=lambda: defaultdict(dict))
    skipped: dict[int, Record] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    rounds: dict[tuple[Any, ...], dict[str, float]] = field(default_factory=dict)
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    loads: dict[str, list[Any]] = field(default_factory=dict)
    new: list[Record] = field(default_factory=list)

    @classmethod
    def open(
        cls, identity: Identity, folder: Path | None, dist: DistributedContext, environment: dict[str, Any]
    ) -> Records:
        """Read what earlier runs left in `folder`, and append to this process's own file there.

        Raises:
            ResumeError: the folder holds samples of another run, or something else.
        """
        session = min(dist.gather([datetime.now(UTC).isoformat(timespec="microseconds")]))
        records = cls(identity, None, session, {"date": session[:19] + "Z", **environment})
        records.load, records.cores = load_average(), available_cores() / dist.size  # before this run adds to it
        if folder is None:
            return records
        folder.mkdir(parents=True, exist_ok=True)
        records.path = folder / ("samples.jsonl" if dist.is_main else f"samples-{dist.rank}.jsonl")
        begun = [path for path in sorted(folder.glob(FILES)) if records._read(path)]
        dist.wait()  # no process writes before all have read
        if records.path not in begun:
            run = {**identity.values, "digests": identity.digests}
            records._write([{"run": run, "place": identity.place}])
        return records

    @classmethod
    def read(cls, folder: Path) -> Records:
        """Return what runs have left in a folder, whichever they are; nothing is written there.

        Raises:
            ResumeError: a line is no record.
        """
        records = cls()
        for path in sorted(folder.glob(FILES)):
            records._keep_all(path, read_lines(path)[1:])  # behind the line of the run
        return records

    def check(self, listed: Sequence[SampleInfo]) -> None:
        """Compare the records with what is known of the samples.

        Raises:
            ResumeError: a record is of another sample, or of another label.
        """
        for done in self.by_variant.values():
            for position, record in done.items():
                if not 0 <= position < len(listed):
                    raise ResumeError(
                        f"{self._where()} a sample {position}, and there are {len(listed)}. {WHAT_TO_DO}"
                    )
                self._compare(record, listed[position].name, listed[position].label)

    def check_results(self, fields: Mapping[str, Check]) -> None:
        """Check what the task's scorer reads of each result.

        Raises:
            ResumeError: a record lacks one of the fields, or holds something else there.
        """
        for done in self.by_variant.values():
            for position, record in done.items():
                try:
                    check_fields(record, fields)
                except ValueError as error:
                    raise ResumeError(
                        f"{self._where()} a record of sample {position} that cannot be used: {error}. {WHAT_TO_DO}"
                    ) from error

    def check_sample(self, sample: Sample) -> None:
        """Compare the records of one sample with what was read of it; raises as `check` does."""
        for done in self.by_variant.values():
            if sample.position in done:
                self._compare(done[sample.position], sample.name, sample.label)

    def add(self, records: Sequence[Record]) -> None:
        """Keep records, in the file as well."""
        records = [{**record, "session": self.session} for record in records]
        if self.session not in self.sessions:
            self._warn_of_other_versions()
            begun = {"environment": self.environment, "session": self.session, "load": [self.load, self.cores]}
            records = [begun, *records]
        for record in records:
            self._keep(record)
        self.new += records
        self._write(records)

    def skip(self, skipped: Skipped) -> None:
        """Keep that a sample was left out, unless that is known."""
        earlier = self.skipped.get(skipped.position)
        if earlier is None or (earlier["name"], earlier["skipped"]) != (skipped.sample, skipped.reason):
            self.add([{"sample": skipped.position, "name": skipped.sample, "skipped": skipped.reason}])

    def merge(self, records: Iterable[Record]) -> None:
        """Keep the records of other processes, which have files of their own."""
        for record in records:
            self._keep(record)

    def has(self, variant: str, samples: Iterable[Sample]) -> bool:
        """Tell whether all samples are done with a variant."""
        done = self.by_variant[variant]
        return all(sample.position in done for sample in samples)

    def is_finished(self, variants: Iterable[str], positions: Iterable[int]) -> bool:
        """Tell whether all positions are done with all variants; one that was skipped never is, and is tried again."""
        done = [self.by_variant[variant] for variant in variants]
        return all(position in positions_done for position in positions for positions_done in done)

    def describe_environment(self) -> dict[str, Any]:
        """Return what was measured with and when last; `earlier_sessions` are those with something else."""
        *earlier, last = [self.sessions[name] for name in sorted(self.sessions)] or [self.environment]
        others = {
            json.dumps({**environment, "date": None}): environment
            for environment in earlier
            if {**environment, "date": last["date"]} != last
        }
        return {**last, "earlier_sessions": list(others.values())} if others else last

    def doubts_of_load(self) -> list[str]:
        """Return a warning for each load of the machine, at the start of a session, that exceeded its cores."""
        doubts = [doubt_of_load(load, cores) for load, cores in self.loads.values()]
        return list(dict.fromkeys(doubt for doubt in doubts if doubt is not None))

    def _keep(self, record: Record) -> None:
        """Keep a record; raises ValueError where it is none."""
        kind = record_kind(record)
        if kind == "environment":
            self.sessions[record["session"]] = record["environment"]
            self.loads[record["session"]] = record["load"]
        elif kind == "peak_memory_mib":
            name = record["variant"]
            self.peaks[name] = max(record["peak_memory_mib"], self.peaks.get(name, 0))
        elif kind == "round":
            self.rounds[(record["session"], *record["round"])] = record["seconds"]
        elif kind == "skipped":
            if _is_later(record, self.skipped.get(record["sample"])):
                self.skipped[record["sample"]] = record
        else:
            self._keep_result(record)

    def _keep_result(self, record: Record) -> None:
        done, position = self.by_variant[record["variant"]], record["sample"]
        if _is_later(record, done.get(position)):
            done[position] = record
        if position in self.skipped and _is_later(record, self.skipped[position]):
            del self.skipped[position]

    def _read(self, path: Path) -> bool:
        """Keep what a file holds; returns whether it has a run's first line."""
        records = read_lines(path)
        if not records:
            if path.stat().st_size:
                logger.warning("%s was cut short in its first line; it holds no samples that could be lost.", path)
            return False
        self._check_run(path, records[0])
        self._keep_all(path, records[1:])
        return True

    def _keep_all(self, path: Path, records: Sequence[Record]) -> None:
        for record in records:
            try:
                self._keep(record)
            except ValueError as error:
                raise ResumeError(_no_record(path, json.dumps(record), f" ({error})")) from error

    def _check_run(self, path: Path, first: Record) -> None:
        run = first.get("run")
        if not isinstance(run, dict):
            message = f"{path} does not say of which run its samples are: its first line is lost."
            raise ResumeError(f"{message} {WHAT_TO_DO}")
        if not isinstance(run.get("digests"), dict):
            raise ResumeError(
                f"{path} holds samples of an earlier hf_tome, which did not note what data they are of. {WHAT_TO_DO}"
            )
        identity = self.identity.as_begun(run)
        wanted = json.loads(json.dumps({**identity.values, "digests": identity.digests}))
        differences = _differences(run, wanted)
        if differences:
            raise ResumeError(f"{path} holds samples of another run: {', '.join(differences)}. {WHAT_TO_DO}")
        if identity is not self.identity:
            logger.info("%s: a run of %s samples, which grows.", path, run["limit"])
        if first.get("place") != self.identity.place:
            logger.warning("%s: resuming with data in another folder; the names and labels are the same.", path)

    def _compare(self, record: Record, name: str, label: Any) -> None:
        right = next((record[key] for key in RIGHT if key in record), None)
        for subject, stored, wanted in (("name", record.get("name"), name), ("label", right, label)):
            if stored not in (None, wanted) and stored != json.loads(json.dumps(wanted)):
                raise ResumeError(
                    f"{self._where()} sample {record['sample']} with the {subject} {stored!r} instead of {wanted!r}. "
                    f"{WHAT_TO_DO}"
                )

    def _where(self) -> str:
        return f"{self.path.parent if self.path else 'This run'} holds"

    def _warn_of_other_versions(self) -> None:
        versions = [_versions(environment) for environment in (*self.sessions.values(), self.environment)]
        if any(version != versions[-1] for version in versions):
            earlier = "; ".join(dict.fromkeys(version for version in versions if version != versions[-1]))
            logger.warning(
                "%s samples measured with %s; resuming with %s. results.json names both.",
                *(self._where(), earlier, versions[-1]),
            )

    def _write(self, records: Sequence[Record]) -> None:
        if self.path is None or not records:
            return
        try:
            append_lines(self.path, map(json.dumps, records))
        except OSError as error:
            if error.errno == errno.ELOOP:  # a symbolic link, which room would not help
                raise
            raise OSError(
                error.errno,
                f"{error.strerror}: what was finished before is kept in {self.path.parent}; when there is room, the "
                "same command resumes from there",
            ) from error


def _is_later(record: Record, earlier: Record | None) -> bool:
    return earlier is None or record["session"] >= earlier["session"]


def read_lines(path: Path) -> list[Record]:
    """Return the records of a file; a line that a kill cut short is left out.

    Raises:
        ResumeError: a line is whole, and no record.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [record for line in lines if (record := _parse(line, path)) is not None]


def _parse(line: str, path: Path) -> Record | None:
    """Return what a line holds, `None` for the one that was being written when the run was killed."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    except RecursionError as error:
        raise ResumeError(_no_record(path, line)) from error
    if not isinstance(record, dict):
        raise ResumeError(_no_record(path, line))
    return record


def _no_record(path: Path, line: str, reason: str = "") -> str:
    return f"{path} has a line that is none of a run's, {line[:60]!r}{reason}. {WHAT_TO_DO}"


def _differences(stored: Record, wanted: Record) -> list[str]:
    names = [name for name in {**stored, **wanted} if name != "digests" and stored.get(name) != wanted.get(name)]
    shown = [f"{name} {stored.get(name)!r} instead of {wanted.get(name)!r}" for name in names]
    digests = {**stored["digests"], **wanted["digests"]}
    return shown + [
        f"other {digest_name}"
        for digest_name in digests
        if stored["digests"].get(digest_name) != wanted["digests"].get(digest_name)
    ]


def _versions(environment: dict[str, Any]) -> str:
    packages = environment.get("packages", {})
    return ", ".join(f"{name} {packages.get(name)}" for name in COMPARED_PACKAGES)

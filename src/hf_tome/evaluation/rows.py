"""From what each sample gave to the rows of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .job import Outcome
from .records import Record, Records
from .variants import Variant


def make_rows(records: Records, variants: Sequence[Variant], outcome: Outcome) -> list[dict[str, Any]]:
    """Return one row a variant, over the samples that all of them have; the first one is the unmerged model."""
    positions = sorted(records.by_variant[variants[0].name])
    unmerged = [records.by_variant[variants[0].name][position] for position in positions]
    rows = []
    for variant in variants:
        done = [records.by_variant[variant.name][position] for position in positions]
        costs = _costs(done, unmerged, records.peaks.get(variant.name))
        rows.append({**_what(variant), **outcome.metrics(done, unmerged), **costs})
    return rows


def _what(variant: Variant) -> dict[str, Any]:
    size = variant.image_size
    control = {} if variant.control is None else {"control": variant.control}
    return {
        "config": variant.config.to_dict(),
        "name": variant.name,
        **control,
        **({} if size is None else {"image_size": list(size)}),
    }


def _costs(done: Sequence[Record], unmerged: Sequence[Record], peak: float | None) -> dict[str, float | None]:
    seconds = sum(record["seconds"] for record in done)
    counts = [record["gflops"] for record in done]
    return {
        "tokens": _mean(done, "tokens"),
        "gflops": None if None in counts else _mean(done, "gflops"),
        "samples_per_second": len(done) / seconds,
        "speedup": sum(record["seconds"] for record in unmerged) / seconds,
        "peak_memory_mib": peak,
    }


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(record[key] for record in records) / len(records)

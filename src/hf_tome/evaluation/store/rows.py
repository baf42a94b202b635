"""From what each sample gave to the rows of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..variants import Variant
from .record import Record, Scorer
from .run_store import Records


def shared_positions(records: Records, variants: Sequence[Variant]) -> list[int]:
    """Return the positions of the samples that all variants have, whatever became unreadable in between."""
    return sorted(set.intersection(*(set(records.by_variant[variant.name]) for variant in variants)))


def make_rows(
    records: Records, variants: Sequence[Variant], scorer: Scorer, positions: Sequence[int]
) -> list[dict[str, Any]]:
    """Return one row a variant, over the samples at `positions`; the first one is the unmerged model."""
    unmerged = [records.by_variant[variants[0].name][position] for position in positions]
    rows = []
    for variant in variants:
        done = [records.by_variant[variant.name][position] for position in positions]
        costs = _costs(done, _speedup(records, done), records.peaks.get(variant.name))
        rows.append({**_describe(variant), **scorer.metrics(done, unmerged), **costs})
    return rows


def _speedup(records: Records, done: Sequence[Record]) -> float | None:
    """Compare times of the same session alone: another had another load, other threads or another machine."""
    pairs = [
        (records.unmerged_seconds[key], record["seconds"])
        for record in done
        if (key := (record["session"], record["sample"])) in records.unmerged_seconds
    ]
    unmerged, merged = (sum(seconds) for seconds in zip(*pairs)) if pairs else (0, 0)
    return unmerged / merged if merged else None


def _describe(variant: Variant) -> dict[str, Any]:
    size = variant.image_size
    control = {} if variant.control is None else {"control": variant.control}
    return {
        "config": variant.config.to_dict(),
        "name": variant.name,
        **control,
        **({} if size is None else {"image_size": list(size)}),
    }


def _costs(done: Sequence[Record], speedup: float | None, peak: float | None) -> dict[str, float | None]:
    seconds = sum(record["seconds"] for record in done)
    counts = [record["gflops"] for record in done]
    return {
        "tokens": _mean(done, "tokens"),
        "gflops": None if None in counts else _mean(done, "gflops"),
        "samples_per_second": len(done) / seconds,
        "speedup": speedup,
        "peak_memory_mib": peak,
    }


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(record[key] for record in records) / len(records)

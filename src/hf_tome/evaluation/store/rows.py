"""From the records of samples to the rows of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..variants import Variant
from .record import Record, Scorer
from .run_store import Records
from .speed import speed


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
        costs = {**_costs(done), **speed(records.rounds, variant.name)}
        costs["peak_memory_mib"] = records.peaks.get(variant.name)
        metrics = scorer.metrics(done, unmerged)
        if variant is variants[0] and "drop" in metrics:  # the model loses nothing against itself, whatever the sample
            metrics |= dict.fromkeys(("drop", "drop_low", "drop_high"), 0.0)
        rows.append({**_describe(variant), **metrics, **costs})
    return rows


def _describe(variant: Variant) -> dict[str, Any]:
    size = variant.image_size
    control = {} if variant.control is None else {"control": variant.control}
    return {
        "config": variant.config.to_dict(),
        "name": variant.name,
        **control,
        **({} if size is None else {"image_size": list(size)}),
    }


def _costs(done: Sequence[Record]) -> dict[str, float | None]:
    counts = [record["gflops"] for record in done]
    return {"tokens": _mean(done, "tokens"), "gflops": None if None in counts else _mean(done, "gflops")}


def _mean(records: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(record[key] for record in records) / len(records)

"""Whether results may stand as benchmark results on the Hub, where they are compared with those of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt
from typing import Any

from ..store.results import Results
from .tables import quality, unit

MAX_HALF_WIDTH = 2.0
"""Points that a published accuracy or drop may be away from the measured one, at 95 % confidence."""
NORMAL_QUANTILE = 1.96
HITS = ("top1", "accuracy")
"""The measures that count samples, whose interval is known from their number."""


def doubts_of_publishing(results: Results, row: Mapping[str, Any], dataset: str) -> list[str]:
    """Return why results must not be published as those of a data set, in sentences; empty where nothing is wrong.

    Args:
        results: of an evaluation.
        row: the one that the card is about.
        dataset: Hub id of the data that the results are to count for.
    """
    return list(_doubts(results, row, dataset))


def _doubts(results: Results, row: Mapping[str, Any], dataset: str) -> Iterator[str]:
    count, data = results.data["num_samples"], results.data["id"]
    if results.run.get("limit") is not None:
        yield f"Only {results.run['limit']} {unit(results)} of the split were drawn, with --limit."
    if "/" not in data:
        renamed = "" if data == dataset else f", and that it is {dataset} was only said, with --dataset"
        yield f"The data are the local folder {data!r}, which nobody else can check{renamed}."
    elif data != dataset:
        yield f"The data are {data}, not {dataset}, as --dataset says."
    if quality(row).key in HITS:
        half = wilson_half_width(row[quality(row).key] / 100, count)
        if half > MAX_HALF_WIDTH:
            yield f"{count} {unit(results)} leave {half:.1f} points of doubt about the accuracy."
    if "drop" in row:
        half = (row["drop_high"] - row["drop_low"]) / 2
        if half > MAX_HALF_WIDTH:
            yield f"{count} {unit(results)} leave {half:.1f} points of doubt about what merging costs."


def wilson_half_width(share: float, count: int) -> float:
    """Return half the width of Wilson's 95 % interval of a share of so many samples, in points."""
    z = NORMAL_QUANTILE
    spread = sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return 100 * z * spread / (1 + z**2 / count)

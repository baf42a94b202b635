"""The results of an evaluation, and the environment and data behind them, as plain JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .run_store import Records


@dataclass
class Results:
    """The results of one evaluation, as plain JSON values."""

    environment: dict[str, Any]
    run: dict[str, Any]
    data: dict[str, Any]
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the whole as one JSON object."""
        return {"environment": self.environment, "run": self.run, "data": self.data, "rows": self.rows}


def describe_data(name: str, split: str, records: Records, positions: Sequence[int]) -> dict[str, Any]:
    """Describe the data: its name, the number of samples at `positions`, and those that could not be read."""
    # A sample that could be read by an earlier run of the same variants is in the rows.
    left_out = sorted(set(records.skipped) - set(positions))
    return {
        "id": name,
        "split": split,
        "num_samples": len(positions),
        "skipped": [
            {"sample": records.skipped[position]["name"], "reason": records.skipped[position]["skipped"]}
            for position in left_out
        ],
    }


def nothing_readable(name: str, split: str, records: Records) -> str:
    """Return the message for a run without a single sample."""
    skipped = list(records.skipped.values())
    if not skipped:
        return f"Split {split!r} of {name} has no samples."
    first = skipped[0]
    return (
        f"None of the {len(skipped)} samples in split {split!r} of {name} could be read; the first "
        f"is {first['name']}: {first['skipped']}"
    )

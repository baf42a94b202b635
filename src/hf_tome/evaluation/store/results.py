"""The results of an evaluation, and the environment and data behind them, as plain JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...config import MergeConfig
from ..data.left_out import LeftOut
from .record_checks import Check, check_fields, is_index, is_mapping, is_number, is_text, list_of, optional
from .run_store import Records


@dataclass
class Results:
    """The results of one evaluation, as plain JSON values."""

    environment: dict[str, Any]
    run: dict[str, Any]
    data: dict[str, Any]
    rows: list[dict[str, Any]]

    @classmethod
    def from_dict(cls, values: Any) -> Results:
        """Check and return what `to_dict` gave; a part may lack fields.

        Raises:
            ValueError: it is something else; the message says where.
        """
        check_fields(values if isinstance(values, dict) else {}, PARTS)
        check_fields(values["data"], {name: check for name, check in DATA.items() if name in values["data"]})
        for row in values["rows"]:
            _check_row(row)
        return cls(**{name: values[name] for name in PARTS})

    def to_dict(self) -> dict[str, Any]:
        """Return the whole as one JSON object."""
        return {"environment": self.environment, "run": self.run, "data": self.data, "rows": self.rows}


def _is_skipped(value: Any) -> bool:
    return is_mapping(value) and all(is_text(value.get(key)) for key in ("sample", "reason"))


def _is_left_out(value: Any) -> bool:
    return (
        is_mapping(value)
        and is_mapping(value.get("counts"))
        and all(map(is_index, value["counts"].values()))
        and list_of(is_text)(value.get("files"))
    )


PARTS: dict[str, Check] = {
    "environment": is_mapping,
    "run": is_mapping,
    "data": is_mapping,
    "rows": list_of(is_mapping),
}
DATA: dict[str, Check] = {
    "id": is_text,
    "split": is_text,
    "num_samples": is_index,
    "skipped": list_of(_is_skipped),
    "left_out": _is_left_out,
}
ROW: dict[str, Check] = {"name": is_text, "config": is_mapping}
"""What the parts of the results hold; all other fields of a row are numbers, or `None`."""
OF_A_ROW: dict[str, Check] = {**ROW, "control": is_text, "image_size": list_of(is_index)}


def _check_row(row: dict[str, Any]) -> None:
    check_fields(row, ROW)
    MergeConfig.from_dict(row["config"])
    check_fields(row, {name: OF_A_ROW.get(name, optional(is_number)) for name in row})


def describe_data(
    name: str, split: str, left_out: LeftOut, records: Records, positions: Sequence[int]
) -> dict[str, Any]:
    """Describe the data: its name, the number of samples at `positions`, and what was left out or not readable."""
    # A sample that could be read by an earlier run of the same variants is in the rows.
    unread = sorted(set(records.skipped) - set(positions))
    return {
        "id": name,
        "split": split,
        "num_samples": len(positions),
        "skipped": [
            {"sample": records.skipped[position]["name"], "reason": records.skipped[position]["skipped"]}
            for position in unread
        ],
        **({"left_out": left_out.to_dict()} if left_out else {}),
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

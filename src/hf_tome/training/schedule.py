"""How merging changes while a model is trained: from which epoch or step on, what merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..config import MergeConfig

UNITS = ("epoch", "step")
UNMERGED = MergeConfig()

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class MergeSchedule:
    """Stages of a training run, each with what merges from its start on; before the first one nothing merges.

    Args:
        stages: pairs of a start and the fields of the `MergeConfig` that differ in this stage; `{}` is the config
            itself, `None` merges nothing. `((0, None), (2, {"r": 4}), (4, {}))` starts unmerged.
        unit (`str`, *optional*, defaults to `"epoch"`): what starts are counted in: `"epoch"` (fractions too) or
            `"step"` (of the optimizer).

    Raises:
        ValueError: no stages, starts that do not rise, or an unknown unit.
    """

    stages: Sequence[tuple[float, Fields | None]]
    unit: str = "epoch"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"`unit` is {self.unit!r}; it takes one of {', '.join(map(repr, UNITS))}.")
        stages = tuple((start, fields) for start, fields in self.stages)
        if not stages:
            raise ValueError(
                "The schedule has no stages; it takes pairs of a start and fields, as in ((2, {'r': 8}),)."
            )
        for start, fields in stages:
            if isinstance(start, bool) or not isinstance(start, (int, float)) or not start >= 0:
                raise ValueError(f"A stage starts at {start!r}; starts are numbers of {self.unit}s, from 0 on.")
            if self.unit == "step" and start != int(start):
                raise ValueError(f"A stage starts at step {start!r}; steps are whole numbers.")
            if fields is not None and not isinstance(fields, Mapping):
                raise ValueError(
                    f"The stage from {self.unit} {start:g} on is {fields!r}; it takes a dictionary of fields of the "
                    "MergeConfig, {} for the config itself, or None to merge nothing."
                )
        starts = [start for start, _ in stages]
        if any(later <= earlier for earlier, later in pairwise(starts)):
            raise ValueError(f"The stages start at {starts}; each has to start after the one before.")
        object.__setattr__(self, "stages", stages)

    @classmethod
    def ramp(
        cls, field: str, first: float, last: float, *, begin: float = 0, end: float, stages: int, unit: str = "epoch"
    ) -> MergeSchedule:
        """Return a schedule that takes a field from `first` to `last` in equal steps.

        Args:
            field: of the `MergeConfig`, as `"r"` or `"threshold"`; integers stay integers.
            first, last: its values in the first and the last stage.
            begin, end: where the first and the last stage start.
            stages: how many, at least 2.
            unit: see the class.
        """
        if not isinstance(stages, int) or stages < 2:
            raise ValueError(f"`stages` is {stages!r}; a ramp takes at least 2.")
        rounds = isinstance(first, int) and isinstance(last, int)
        pairs = []
        for index in range(stages):
            share = index / (stages - 1)
            value = first + (last - first) * share
            start = begin + (end - begin) * share
            pairs.append((round(start) if unit == "step" else start, {field: round(value) if rounds else value}))
        return cls(tuple(pairs), unit)

    def configs(self, config: MergeConfig) -> tuple[tuple[float, MergeConfig], ...]:
        """Return the start and the whole config of each stage.

        Raises:
            ValueError: fields that the config does not take.
        """
        rows = [] if self.stages[0][0] == 0 else [(0.0, UNMERGED)]
        for start, fields in self.stages:
            try:
                whole = UNMERGED if fields is None else MergeConfig.from_dict({**config.to_dict(), **fields})
            except ValueError as error:
                raise ValueError(f"The schedule's stage from {self.unit} {start:g} on: {error}") from error
            rows.append((start, whole))
        return tuple(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, from which `from_value` makes the same schedule."""
        return {"stages": [[start, _json(fields)] for start, fields in self.stages], "unit": self.unit}

    @classmethod
    def from_value(cls, value: Any) -> MergeSchedule:
        """Return a schedule from one, from what `to_dict` gave, or from `{start: fields}` by epoch.

        Raises:
            ValueError, TypeError: it is none of these.
        """
        if isinstance(value, MergeSchedule):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(
                f"`schedule` is a {type(value).__name__}; it takes a MergeSchedule, or a dictionary from epochs to "
                "fields, as in {0: None, 2: {'r': 4}, 4: {}}."
            )
        if set(value) == {"stages", "unit"}:
            return cls(tuple((start, fields) for start, fields in value["stages"]), value["unit"])
        return cls(tuple(value.items()))


def _json(fields: Fields | None) -> dict[str, Any] | None:
    """Return fields as JSON keeps them: (r, inflection) as an object, as in a merge config's file."""
    if fields is None:
        return None
    values = {name: list(value) if isinstance(value, (tuple, range)) else value for name, value in fields.items()}
    if isinstance(fields.get("r"), tuple):
        values["r"] = dict(zip(("r", "inflection"), fields["r"]))
    return values

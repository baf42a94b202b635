"""Search one budget, and from its winner the others: a front from mild to strong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from .spaces.projected import ProjectedSpace
from .spaces.space import Settings, Space
from .trials import Exhausted, Trial, Trials

logger = logging.getLogger(__name__)

BUDGETS = (0.9, 0.7, 0.6, 0.5, 0.4, 0.3)
"""The front, besides the budget that is asked for."""
START = Settings(centre=0.4, width=0.5, fields={"metric": "x", "combine": "keep_norm", "protect_attended": 2.0})
CONSTANT = Settings(centre=None)
MAME = Settings(fields={"method": "mame"})
SHIFT = 0.09
"""By how much of the depth the peak moves, about one block of twelve."""
NARROW, WIDE = 0.75, 1.35

Moves = Callable[[Settings], Iterator[Settings]]


@dataclass(frozen=True)
class Point:
    """The best of what was tried at one budget."""

    budget: float
    settings: Settings
    trial: Trial


def _metrics(now: Settings) -> Iterator[Settings]:
    yield now.having(metric="k")
    yield now.having(metric="k", head_aggregation="concat")


def _protection(now: Settings) -> Iterator[Settings]:
    for weight in (0.0, 1.0, 4.0):
        yield now.having(protect_attended=weight)


def _norm(now: Settings) -> Iterator[Settings]:
    yield now.having(combine="weighted_mean")


def _centre(now: Settings) -> Iterator[Settings]:
    for shift in (-SHIFT, SHIFT):
        if now.centre is not None and 0 <= now.centre + shift <= 1:
            yield replace(now, centre=round(now.centre + shift, 4))


def _width(now: Settings) -> Iterator[Settings]:
    if now.centre is not None:
        for factor in (NARROW, WIDE):
            yield replace(now, width=round(now.width * factor, 4))


def _fine(now: Settings) -> Iterator[Settings]:
    """Half steps around what was chosen."""
    if now.centre is not None:
        for shift in (-SHIFT / 2, SHIFT / 2):
            yield replace(now, centre=round(min(max(now.centre + shift, 0.0), 1.0), 4))
        for factor in (NARROW**0.5, WIDE**0.5):
            yield replace(now, width=round(now.width * factor, 4))
        for floor in (0.05, 0.3):
            yield replace(now, floor=floor)


def _proportional(now: Settings) -> Iterator[Settings]:
    yield now.having(proportional_attention=not now.fields.get("proportional_attention", True))


AT_THE_BUDGET: tuple[Moves, ...] = (_centre, _metrics, _protection, _norm, _width, _centre, _fine, _proportional)
"""What is tried at the budget that is asked for, each from the best so far."""
AT_ITS_NEIGHBOURS: tuple[Moves, ...] = (_centre, _centre)
"""What is tried at the others, from their neighbour's winner."""


def starts(methods: Sequence[str]) -> list[Settings]:
    """Return what is tried first in the blocks of a tower; of the methods, ToMe alone has a family of schedules."""
    first = [START, CONSTANT] if "tome" in methods else []
    first += [MAME] if "mame" in methods else []
    others = [name for name in methods if name not in ("tome", "mame")]
    return first + [Settings(centre=None, fields={"method": name}) for name in others]


@dataclass
class Search:
    """One search.

    Attributes:
        starts: what is tried first at the budget that is asked for; the second of them at every other one too.
        sizes: image sizes to try, from large to small.
        points: the best of each budget that was searched.
    """

    space: Space | ProjectedSpace
    trials: Trials
    starts: Sequence[Settings]
    sizes: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        self.points: dict[float, Point] = {}
        self._peaked: dict[float, Point] = {}
        self.notes: list[str] = []

    def run(self, budget: float, others: Sequence[float] = BUDGETS) -> None:
        """Search the budget, then the others from near to far, while evaluations and time last."""
        order = sorted({budget, *others}, key=lambda value: abs(value - budget))
        for value in order:
            try:
                if value == budget:
                    self._search(value, self.starts, AT_THE_BUDGET, with_sizes=True)
                else:
                    self._search(value, [*self._neighbours(value), *self.starts[1:2]], AT_ITS_NEIGHBOURS)
            except Exhausted:
                left = [shown for shown in order if shown not in self.points]
                self.notes.append(
                    "the search ended by its number of evaluations or its time"
                    + (f"; budgets not searched: {', '.join(f'{shown:g}' for shown in left)}" if left else "")
                )
                return

    def nearest(self, budget: float) -> Point:
        """Return the point of the budget that is nearest to this one."""
        return self.points[_nearest(self.points, budget)]

    def _neighbours(self, budget: float) -> list[Settings]:
        """Return the winner at the nearest budget, and the best of the family of schedules there."""
        neighbours = []
        for points in (self.points, self._peaked):
            if points:
                neighbours.append(points[_nearest(points, budget)].settings)
        return neighbours

    def _search(
        self, budget: float, starts: Sequence[Settings], moves: Sequence[Moves], with_sizes: bool = False
    ) -> None:
        for settings in starts:
            self._try(budget, settings)
        for move in moves:
            now = self._peaked.get(budget)
            for settings in move(now.settings) if now is not None else ():
                self._try(budget, settings)
        if with_sizes and budget in self._peaked:
            for size in self.sizes:
                self._try(budget, replace(self._peaked[budget].settings, image_size=size))

    def _try(self, budget: float, settings: Settings) -> None:
        variant = self.space.variant(settings, budget)
        if variant is None:
            return
        trial = self.trials.run(variant)
        logger.info("%g: %s: %.5f", budget, variant.name, trial.loss)
        has_schedule = settings.centre is not None and settings.fields.get("method", "tome") == "tome"
        for best in (self.points, *([self._peaked] if has_schedule and settings.image_size is None else [])):
            if budget not in best or trial.loss < best[budget].trial.loss:
                best[budget] = Point(budget, settings, trial)


def _nearest(budgets: Iterable[float], budget: float) -> float:
    return min(budgets, key=lambda value: abs(value - budget))

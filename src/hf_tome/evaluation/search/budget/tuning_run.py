"""One run of tuning to a budget: the search, the choice, and the variants beside it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ....api import plan_targets
from ....errors import UnsupportedModelError
from ....files import write_whole
from ....merging.methods import get_method
from ...job import Job
from ...running.batches import Batch
from ...store.fingerprint import digest, fingerprint
from ...variants import Variant
from .controls import EXACT, Controls
from .front import Point, Search, starts
from .sensitivity import sensitivities
from .spaces.costs import Costs
from .spaces.images import num_tokens_of, smaller_sizes
from .spaces.projected import PROJECTED, ProjectedSpace, projected_starts
from .spaces.space import Size, Space
from .timing import relative_seconds, share_for
from .trials import Progress, Trials

if TYPE_CHECKING:
    from .budget import Budget

FILE = "time_budget.json"
SMALLEST = 0.7
"""Image sizes are tried down to this share of the side."""
CORRECTIONS = 3
"""How often the cost of the choice is corrected to meet a budget of time."""
CLOSE = 0.97
"""A choice is near enough that takes this share of its budget of time, or more."""


@dataclass
class TuningRun:
    """The state of one call of `tune_to_budget`.

    Attributes:
        batches: the samples to choose by.
        where: where tokens merge, `"auto"` for the blocks of a tower.
        sensitivities: the divergence of merging in each block alone, where it is measured.
        front_seconds: the time of each point of the front, by its budget, and of the unmerged model with its exact
            last block, as shares of the unmerged model's; where they are measured.
    """

    job: Job
    budget: Budget
    batch_size: int
    batches: list[Batch]
    out: Path | None
    where: str = "auto"
    sensitivities: list[float] = field(default_factory=list)
    front_seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def make_space(self, smaller_images: bool) -> None:
        """Make what the search chooses from.

        Raises:
            ValueError: the GFLOPs are not known.
        """
        self.sizes: list[Size] = []
        self.space: Space | ProjectedSpace = ProjectedSpace()
        if self.where == PROJECTED:
            if smaller_images:
                self.notes.append("no smaller images: where projected tokens merge, the image size is no choice")
            return
        costs = Costs.of(self.job.model)
        if costs is None:
            raise ValueError(
                f"The GFLOPs of {self.job.model_name} are not known, by which schedules are scaled to a budget; use "
                "`hf-tome sweep`, which measures accuracy and speed of the configs that it is given."
            )
        first = self.batches[0].inputs.get("pixel_values")
        if first is not None and first.ndim == 4:
            num_tokens = num_tokens_of(self.job, self.batches[0])
            costs = costs.at(num_tokens) if num_tokens not in (0, costs.shape.num_tokens) else costs
        sizes, why = smaller_sizes(self.job, self.batches[0], costs)
        self.space = Space(costs, sizes)
        if why and smaller_images:
            self.notes.append(why)
        if smaller_images:
            side = self.batches[0].inputs["pixel_values"].shape[-2] if sizes else 0
            large = [size for size in sizes if size[0] >= SMALLEST * side]
            self.sizes = sorted(large, key=sizes.__getitem__, reverse=True)[:3]

    def search(
        self,
        methods: Sequence[str],
        use_labels: bool,
        max_evaluations: int,
        time_limit: float | None,
        front: Sequence[float],
        seed: int,
        on_trial: Progress | None,
    ) -> None:
        """Search the front."""
        job = self.job
        settings = [seed, self.sizes, use_labels, self.batch_size, str(job.model.dtype), job.task]
        identity = {
            "model": fingerprint(job.model),
            "samples": digest([sample.name for batch in self.batches for sample in batch.samples]),
            "settings": digest(settings + ([self.where] if self.where == PROJECTED else [])),
        }
        start = time.monotonic()
        self.trials = Trials(
            job,
            self.batches,
            identity,
            max_evaluations,
            None if time_limit is None else start + time_limit,
            self.out,
            on_trial,
            views=[None, *self.sizes[:2]] if self.sizes else (),
            use_labels=use_labels,
        )
        self.trials.start()
        self._check_targets(time_limit, time.monotonic() - start)
        first = projected_starts(methods) if self.where == PROJECTED else starts(methods)
        self.finder = Search(self.space, self.trials, first, self.sizes)
        wanted = 0.7 if self.budget.max_drop is not None else self.budget.share
        self.finder.run(wanted, front)
        if not self.finder.points:
            raise ValueError(
                f"No config of {', '.join(methods)} is within {wanted:g} of the unmerged model's {self.space.unit}, "
                "as a block merges half of its tokens at most. Give a larger budget."
            )
        self.notes += self.finder.notes

    def _check_targets(self, time_limit: float | None, taken: float) -> None:
        """Raise where the time limit leaves nothing to search in, or the samples nothing to choose by."""
        if time_limit is not None and taken + self.trials.slowest > time_limit:
            raise ValueError(
                f"`time_limit` is {time_limit:g} s, but the unmerged model took {taken:.1f} s on the "
                f"{sum(len(batch.samples) for batch in self.batches)} samples to choose by, and each evaluation takes "
                f"up to that; give at least {math.ceil(taken + 2 * self.trials.slowest)} s."
            )
        if self.trials.are_alike():
            raise ValueError(
                "The samples to choose by are all alike: the unmerged model gives every one the same output, so that "
                "no config can be told from another. Give samples as they come in use."
            )

    def measure_blocks(self) -> None:
        """Measure each block alone, with the fields of the choice; these evaluations count besides the others."""
        if isinstance(self.space, ProjectedSpace):
            self.notes.append("no picture of the blocks: none of them merges where projected tokens do")
            return
        costs = self.space.costs
        self.trials.max_evaluations = self.trials.used + costs.blocks
        fields = dict(self.finder.nearest(self.budget.share).settings.fields)
        takes_r = get_method(fields.get("method", "tome")).takes_r
        self.sensitivities = sensitivities(self.trials, costs, fields if takes_r else {})

    def choose(self) -> Point:
        """Return the point for the budget, corrected where it is one of time.

        The share of the cost that it comes to is kept, as another timing would give another choice.
        """
        point, wanted = self.finder.nearest(self.budget.share), self.budget.share
        if self.budget.by == "gflops" or self.budget.max_drop is not None:
            return point
        path = None if self.out is None else self.out / FILE
        if path is not None and path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["budget"] == wanted:
                return self._point_at(kept["share"]) or point
        measured = [(1.0, 1.0)]  # shares of the cost and of the time
        for step in range(CORRECTIONS + 1):
            seconds = self.seconds({"tuned": point.trial.variant})["tuned"]
            if CLOSE * wanted <= seconds <= wanted:
                break
            measured.append((point.budget, seconds))
            aimed = share_for((1 + CLOSE) / 2 * wanted, measured)
            corrected = self._point_at(aimed) if step < CORRECTIONS else None
            if corrected is None:
                if seconds > wanted:
                    self.notes.append(
                        f"the budget of {wanted:g} of the time is not met: the choice takes {seconds:.3f}"
                    )
                break
            point = corrected
        if path is not None:
            write_whole(path, json.dumps({"budget": wanted, "share": point.budget}) + "\n")
        return point

    def _point_at(self, share: float) -> Point | None:
        """Return the winner at the nearest budget, scaled to a share of the cost; `None` where it cannot be."""
        share = min(share, 1.0)
        near = self.finder.nearest(share)
        variant = self.space.variant(near.settings, share) if share > 0 else None
        return None if variant is None else Point(share, near.settings, replace(near.trial, variant=variant))

    def variants(
        self, point: Point, at: Sequence[str], against: Sequence[str], also: Sequence[float]
    ) -> dict[str, Variant]:
        """Return what is confirmed, by what it is.

        Args:
            point: the choice.
            at: controls at equal `"gflops"`, at equal `"time"`.
            against: what these controls are.
            also: budgets of the front whose winners are confirmed too.
        """
        controls = Controls(self.space, self._is_supported, self.seconds, against, self.out)
        named = controls.beside(point.trial.variant, point.budget, at)
        for budget in also:
            if budget in self.finder.points:
                named |= controls.at_budget(self.finder.points[budget].trial.variant, budget)
        if "time" in at:
            exact = {EXACT: named[EXACT]} if EXACT in named else {}
            points = {f"{value:g}": other.trial.variant for value, other in self.finder.points.items()}
            self.front_seconds = self.seconds({**exact, **points})
        return named

    def _is_supported(self, variant: Variant) -> bool:
        try:
            plan_targets(self.job.model, variant.config)
        except UnsupportedModelError:
            return False
        return True

    def front(self) -> list[Variant]:
        """Return the winners of all budgets, from mild to strong."""
        return [self.finder.points[value].trial.variant for value in sorted(self.finder.points, reverse=True)]

    def seconds(self, variants: Mapping[str, Variant]) -> dict[str, float]:
        """Return the time of each variant on one batch, as a share of the unmerged model's."""
        return relative_seconds(self.job, self.batches[0], variants)

"""One run of tuning to a budget: the search, the choice, the variants beside it, and what is reported of them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ....config import format_config
from ....files import write_whole
from ....merging.methods import get_method
from ...job import Job
from ...metrics.bootstrap import unchanged_bound
from ...running.batches import Batch
from ...store.fingerprint import digest, fingerprint
from ...store.results import Results
from ...store.run_store import Records
from ...variants import Variant
from .costs import Costs
from .front import CONSTANT, MAME, Point, Search
from .images import num_tokens_of, smaller_sizes
from .paired import gain, samples_to_tell
from .sensitivity import sensitivities
from .space import Settings, Space
from .timing import relative_seconds
from .trials import Progress, Trials

if TYPE_CHECKING:
    from .budget import Budget

TIMED = "equal_time.json"
SMALLEST = 0.7
"""Image sizes are tried down to this share of the side."""
CORRECTIONS = 3
"""How often a budget in GFLOPs is corrected to meet one of time."""


@dataclass
class TuningRun:
    """The state of one call of `tune_to_budget`."""

    job: Job
    budget: Budget
    batch_size: int
    batches: list[Batch]
    out: Path | None
    sensitivities: list[float] = field(default_factory=list)

    def check(self) -> None:
        """Make the costs, and raise where they are not known."""
        costs = Costs.of(self.job.model)
        if costs is None:
            raise ValueError(
                f"The GFLOPs of {self.job.model_name} are not known, by which schedules are scaled to a budget; use "
                "`hf-tome sweep`, which measures accuracy and speed of the configs that it is given."
            )
        self.costs = costs
        first = self.batches[0].inputs.get("pixel_values")
        if first is not None and first.ndim == 4:
            num_tokens = num_tokens_of(self.job, self.batches[0])
            self.costs = costs.at(num_tokens) if num_tokens not in (0, costs.shape.num_tokens) else costs

    def search(
        self,
        methods: Sequence[str],
        free: bool,
        use_labels: bool,
        max_evaluations: int,
        time_limit: float | None,
        front: Sequence[float],
        seed: int,
        on_trial: Progress | None,
    ) -> None:
        """Search the front."""
        job = self.job
        self.notes: list[str] = []
        sizes, why = smaller_sizes(job, self.batches[0], self.costs)
        if why and free:
            self.notes.append(why)
        self.space = Space(self.costs, sizes)
        tried = sorted(sizes, key=lambda size: -sizes[size])
        tried = [size for size in tried if size[0] >= SMALLEST * self._side()][:3] if free else []
        identity = {
            "model": fingerprint(job.model),
            "samples": digest([sample.name for batch in self.batches for sample in batch.samples]),
            "settings": digest([seed, tried, use_labels, self.batch_size, str(job.model.dtype), job.task]),
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
            views=[None, *tried[:2]] if tried else (),
            use_labels=use_labels,
        )
        self.trials.start()
        taken = time.monotonic() - start
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
        self.finder = Search(self.space, self.trials, methods, tried)
        wanted = 0.7 if self.budget.max_drop is not None else self.budget.share
        self.finder.run(wanted, front)
        if not self.finder.points:
            raise ValueError(
                f"No config of {', '.join(methods)} is within {wanted:g} of the unmerged model's GFLOPs, as a block "
                "merges half of its tokens at most. Give a larger budget."
            )
        self.notes += self.finder.notes

    def measure_blocks(self) -> None:
        """Measure each block alone, with the fields of the choice; these evaluations count besides the others."""
        self.trials.max_evaluations = self.trials.used + self.costs.blocks
        best = self.finder.points[min(self.finder.points, key=lambda value: abs(value - self.budget.share))]
        takes_r = get_method(best.settings.fields.get("method", "tome")).takes_r
        self.sensitivities = sensitivities(self.trials, self.costs, dict(best.settings.fields) if takes_r else {})

    def choose(self) -> Point:
        """Return the point for the budget, corrected where it is one of time."""
        nearest = min(self.finder.points, key=lambda value: abs(value - self.budget.share))
        point = self.finder.points[nearest]
        if self.budget.by == "gflops" or self.budget.max_drop is not None:
            return point
        wanted, share = self.budget.share, nearest
        for _ in range(CORRECTIONS):
            measured = self.seconds({"tuned": point.trial.variant})["tuned"]
            if wanted * 0.97 <= measured <= wanted:
                break
            share = min(1.0, share * wanted / measured * (0.99 if measured > wanted else 1.0))
            near = self.finder.points[min(self.finder.points, key=lambda value: abs(value - share))]
            variant = self.space.variant(near.settings, share)
            if variant is None:
                break
            point = Point(share, near.settings, replace(near.trial, variant=variant))
        return point

    def variants(self, point: Point, controls: Sequence[str], against: Sequence[str]) -> dict[str, Variant]:
        """Return what is confirmed, by what it is: the choice, and controls at equal GFLOPs and at equal time."""
        self.against = against
        chosen, share = point.trial.variant, point.budget
        named: dict[str, Variant | None] = {"tuned": chosen}
        if "gflops" in controls:
            named |= self._controls(share, "")
        timed = {name: variant for name, variant in named.items() if variant is not None}
        if "time" not in controls:
            return timed
        shares = self._equal_time_shares(timed)
        for name in list(timed)[1:]:
            other = self._controls(shares[name], " ")[f"{name} "]
            if other is not None and other.name not in {variant.name for variant in timed.values()}:
                named[f"{name}, equal time"] = other
        return {name: variant for name, variant in named.items() if variant is not None}

    def _equal_time_shares(self, timed: Mapping[str, Variant]) -> dict[str, float]:
        """Return the share of the GFLOPs at which each control takes about as long as the choice.

        One step from what each costs, which for image sizes is not what the choice does; what is left is in the
        table's speed-up. The shares are kept, as another timing would give others, whose samples would have to be run
        anew.
        """
        key, path = timed["tuned"].name, None if self.out is None else self.out / TIMED
        if path is not None and path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept.get("tuned") == key and set(kept["shares"]) >= set(timed) - {"tuned"}:
                return kept["shares"]
        seconds = self.seconds(timed)
        shares = {
            name: self.space.share(variant) * seconds["tuned"] / seconds[name]
            for name, variant in timed.items()
            if name != "tuned"
        }
        if path is not None:
            write_whole(path, json.dumps({"tuned": key, "shares": shares}) + "\n")
        return shares

    def _controls(self, share: float, mark: str) -> dict[str, Variant | None]:
        share = min(max(share, 0.01), 1.0)
        pruning = Settings(centre=None, fields={"method": "random_prune"})
        controls = {
            "constant ToMe": self.space.variant(CONSTANT, share),
            "decreasing ToMe": self.space.decreasing(share),
            "MaMe": self.space.variant(MAME, share),
            "random pruning": self.space.variant(pruning, share),
            "smaller images": self.space.nearest_images(share),
        }
        named = {
            name: None if variant is None else replace(variant, control=name) for name, variant in controls.items()
        }
        return {f"{name}{mark}": variant for name, variant in named.items() if name in self.against}

    def at_budgets(self, budgets: Sequence[float]) -> dict[str, Variant]:
        """Return the winner and the constant schedule at other budgets."""
        named: dict[str, Variant | None] = {}
        for value in budgets:
            if value in self.finder.points:
                named[f"tuned, {value:g}"] = self.finder.points[value].trial.variant
                named[f"constant ToMe, {value:g}"] = self.space.variant(CONSTANT, value)
        return {name: variant for name, variant in named.items() if variant is not None}

    def front(self) -> list[Variant]:
        """Return the winners of all budgets, from mild to strong."""
        return [self.finder.points[value].trial.variant for value in sorted(self.finder.points, reverse=True)]

    def strongest(self, results: Results) -> Variant | None:
        """Return the strongest of the front whose drop is allowed, where all that are milder are allowed too.

        Tested in this order and given up at the first failure, the intervals need no correction for their number.
        """
        rows, best = {row["name"]: row for row in results.rows}, None
        if any("drop" not in row for row in results.rows):
            raise ValueError("These results have no drop with an interval, which `max_drop` needs; give a budget.")
        for variant in self.front():
            row = rows[variant.name]
            drop = row["drop_high" if self.budget.sure else "drop"]
            if drop > (self.budget.max_drop or 0) or row["agreement"] < (self.budget.min_agreement or 0):
                break
            best = variant
        return best

    def explain(self, results: Results, chosen: Variant) -> None:
        """Note where nothing of the front holds the largest drop, how near the mildest comes, and what would help."""
        if chosen.merges:
            return
        mildest, count = self.front()[0].name, results.data["num_samples"]
        row = next(row for row in results.rows if row["name"] == mildest)
        note = (
            f"nothing of the front holds `max_drop` ({self.budget.max_drop:g} points); its mildest, {mildest}, loses "
            f"{row['drop']:.2f} points (95 % interval up to {row['drop_high']:.2f}) and agrees on "
            f"{row['agreement']:.1f} % of {count} samples"
        )
        if self.budget.sure and row["drop_high"] > (self.budget.max_drop or 0):
            note += (
                f". Even where no answer changes, so many are sure of {unchanged_bound(count):.2f} points alone: "
                "confirm on more samples, allow more, or let the measured drop alone count (`sure=False`, --not-sure)"
            )
        self.notes.append(note)

    def seconds(self, variants: Mapping[str, Variant]) -> dict[str, float]:
        """Return the time of each variant on one batch, as a share of the unmerged model's."""
        return relative_seconds(self.job, self.batches[0], variants)

    def compare(self, folder: Path, variants: Mapping[str, Variant]) -> None:
        """Pair the choice with each control over the same samples: how many points more it is right by."""
        records = Records.read(folder).by_variant
        self.gains = {}
        of_budget = {name.rpartition(", ")[2]: name for name in variants if name.startswith("tuned, ")}
        for name, variant in variants.items():
            choice = variants[of_budget.get(name.rpartition(", ")[2], "tuned")]
            if name.startswith("tuned") or variant.name == choice.name:
                continue
            difference = gain(self.job.scorer, records[choice.name], records[variant.name])
            if difference is not None:
                self.gains[name] = list(difference)

    def _side(self) -> int:
        return self.batches[0].inputs["pixel_values"].shape[-2]

    def describe(self, results: Results, chosen: Variant, variants: Mapping[str, Variant], choosing: int) -> None:
        """Write into the results what was chosen, how, and how sure it is."""
        unmerged = self.costs.unmerged
        exact = self.costs.last_queries
        self.notes.insert(0, self._chosen_note(results, chosen, choosing))
        self.notes += self._doubts()
        results.run["tuned"] = {
            "name": chosen.name,
            "config": format_config(chosen.config),
            "image_size": None if chosen.image_size is None else list(chosen.image_size),
            "budget": self.budget.share,
            "by": self.budget.by,
            "evaluations": self.trials.used,
            "seconds": round(self.trials.seconds, 1),
            "choosing": choosing,
            "labels": self.trials.num_labels,
            "gflops_unmerged_exact_last_block": None if exact is None else self.costs.exact_gflops,
            "rows": {name: variant.name for name, variant in variants.items()},
            "gains": self.gains,
            "sensitivities": self.sensitivities,
            "front": [
                {
                    "budget": point.budget,
                    "name": point.trial.variant.name,
                    "divergence": point.trial.loss,
                    "gflops": point.trial.gflops,
                    "share": None if point.trial.gflops is None else point.trial.gflops / unmerged,
                }
                for _, point in sorted(self.finder.points.items(), reverse=True)
            ],
            "trials": [
                {"name": trial.variant.name, "divergence": trial.loss, "gflops": trial.gflops}
                for trial in self.trials.done.values()
            ],
        }
        results.run["notes"] = [*self.notes, *results.run.get("notes", ())]

    def _chosen_note(self, results: Results, chosen: Variant, choosing: int) -> str:
        row = next((row for row in results.rows if row["name"] == chosen.name), results.rows[0])
        share = "" if row["gflops"] is None else f", {row['gflops'] / self.costs.unmerged:.3f} of the GFLOPs"
        size = chosen.image_size
        view = "" if size is None else f" on images of {size[0]}x{size[1]} pixels, which the config does not hold"
        labels = f"{self.trials.num_labels} of them with labels" if self.trials.num_labels else "without labels"
        return (
            f"chosen on {choosing} samples ({labels}) by {self.trials.used} evaluations, confirmed on "
            f"{results.data['num_samples']} others: {chosen.name}{view}{share}"
            + "".join(
                f"; {gain:+.1f} points ({low:+.1f} to {high:+.1f}) against {name}"
                for name, (gain, low, high) in self.gains.items()
            )
        )

    def _doubts(self) -> list[str]:
        """Return a warning where the samples cannot tell the choice from the constant schedule."""
        nearest = min(self.finder.points, key=lambda value: abs(value - self.budget.share))
        best = self.finder.points[nearest].trial
        variant = self.space.variant(CONSTANT, nearest)
        other = None if variant is None else self.trials.done.get(variant.name)
        if other is None or other.variant.name == best.variant.name:
            return []
        needed = samples_to_tell(best, other)
        if needed is None:
            return []
        return [
            f"warning: the {len(best.divergences)} samples to choose by do not tell the choice from constant ToMe "
            f"(95 % interval of the difference); it would take about {needed}"
        ]

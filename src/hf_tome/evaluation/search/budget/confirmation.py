"""What the confirming samples say of the choice, in pairs with what was run beside it, and the report of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ....config import format_config
from ...metrics.bootstrap import unchanged_bound
from ...reporting.tables import quality
from ...store.results import Results
from ...store.run_store import Records
from ...variants import UNMERGED, Variant
from .controls import EXACT, IMAGES, MIXED
from .front import CONSTANT
from .paired import (
    Gains,
    Values,
    break_even,
    describe_gains,
    gains,
    mean_gain,
    mixed_row,
    mixed_values,
    sample_values,
    samples_to_tell,
    share_of_slower,
)
from .tuning_run import TuningRun


@dataclass
class Confirmation:
    """The results on the confirming samples of what was chosen, and of what was run beside it.

    Attributes:
        variants: by what they are.
        rows: the names of the rows of the results, by what they are.
        gains: of the choice over each of the others.
    """

    tuning: TuningRun
    results: Results
    variants: Mapping[str, Variant]
    rows: dict[str, str] = field(default_factory=dict)
    gains: dict[str, Gains] = field(default_factory=dict)

    def compare(self, folder: Path) -> None:
        """Pair the choice with each control over the same samples, and add the row of mixed image sizes.

        Args:
            folder: where the records of the samples are.
        """
        records, names = Records.read(folder).by_variant, [row["name"] for row in self.results.rows]
        positions = sorted(set.intersection(*(set(records[name]) for name in names)))
        done = {name: [records[name][position] for position in positions] for name in names}
        scorer = self.tuning.job.scorer
        self.rows = {label: variant.name for label, variant in self.variants.items()}
        chosen_at = {label.rpartition(", ")[2]: label for label in self.variants if label.startswith("tuned, ")}
        for label, variant in self.variants.items():
            choice = self.variants[chosen_at.get(label.rpartition(", ")[2], "tuned")]
            if not label.startswith("tuned") and variant.name != choice.name and label != EXACT:
                self.gains[label] = gains(scorer, done[choice.name], done[variant.name], done[UNMERGED])
        self._mix_images({name: sample_values(scorer, done[name], done[UNMERGED]) for name in names})

    def _mix_images(self, values: Mapping[str, Values]) -> None:
        """Add the row of two image sizes, drawn for each sample with the share at which the mean time is the choice's.

        The sizes are the neighbours of the choice among those that were run, by the times of this run.
        """
        chosen, rows = self.variants["tuned"].name, {row["name"]: row for row in self.results.rows}
        sizes = [name for name, row in rows.items() if row.get("control") == IMAGES and name != chosen]
        seconds = {name: 1 / rows[name]["speedup"] for name in (chosen, *sizes) if rows[name]["speedup"]}
        measure = quality(rows[chosen]).key
        if chosen not in seconds or measure not in values[chosen]:  # average precisions are no means over samples
            return
        order = sorted((name for name in sizes if name in seconds), key=seconds.__getitem__)
        faster = [name for name in order if seconds[name] <= seconds[chosen]]
        slower = [name for name in order if seconds[name] > seconds[chosen]]
        if not faster or not slower:
            return
        pair = faster[-1], slower[0]
        share = share_of_slower(seconds[chosen], *(seconds[name] for name in pair))
        mixed = mixed_values(values[pair[0]], values[pair[1]], share)
        row = mixed_row(rows[pair[0]], rows[pair[1]], share, mixed, values[UNMERGED], measure)
        self.results.rows.append(row)
        self.rows[MIXED] = row["name"]
        self.gains[MIXED] = {
            name: mean_gain(values[chosen][key], mixed[key])
            for name, key in {"points": measure, "agreement": "agreement"}.items()
        }

    def choice(self) -> Variant:
        """Return what is taken: with a largest drop, what holds it, and the unmerged model where nothing does."""
        if self.tuning.budget.max_drop is None:
            return self.variants["tuned"]
        strongest = self._strongest()
        if strongest is None:
            self.tuning.notes.append(self._why_nothing_holds())
        return strongest or Variant(UNMERGED)

    def _strongest(self) -> Variant | None:
        """Return the strongest of the front whose drop is allowed, where all that are milder are allowed too.

        Tested in this order and given up at the first failure, the intervals need no correction for their number.
        """
        budget, best = self.tuning.budget, None
        rows = {row["name"]: row for row in self.results.rows}
        if any("drop" not in row for row in self.results.rows):
            raise ValueError("These results have no drop with an interval, which `max_drop` needs; give a budget.")
        for variant in self.tuning.front():
            row = rows[variant.name]
            drop = row["drop_high" if budget.sure else "drop"]
            if drop > (budget.max_drop or 0) or row["agreement"] < (budget.min_agreement or 0):
                break
            best = variant
        return best

    def _why_nothing_holds(self) -> str:
        """Return how near the mildest of the front comes to the largest drop, and what would help."""
        budget, mildest = self.tuning.budget, self.tuning.front()[0].name
        count = self.results.data["num_samples"]
        row = next(row for row in self.results.rows if row["name"] == mildest)
        note = (
            f"nothing of the front holds `max_drop` ({budget.max_drop:g} points); its mildest, {mildest}, loses "
            f"{row['drop']:.2f} points (95 % interval up to {row['drop_high']:.2f}) and agrees on "
            f"{row['agreement']:.1f} % of {count} samples"
        )
        if budget.sure and row["drop_high"] > (budget.max_drop or 0):
            note += (
                f". Even where no answer changes, so many are sure of {unchanged_bound(count):.2f} points alone: "
                "confirm on more samples, allow more, or let the measured drop alone count (`sure=False`, --not-sure)"
            )
        return note

    def describe(self, chosen: Variant, choosing: int) -> None:
        """Write into the results what was chosen, how, and how sure it is.

        Args:
            chosen: what is taken.
            choosing: the number of samples to choose by.
        """
        tuning, trials, space = self.tuning, self.tuning.trials, self.tuning.space
        pays = [] if (pays_from := self._pays_from()) is None else [pays_from]
        tuning.notes = [self._chosen_note(chosen, choosing), *tuning.notes, *pays, *self._doubts()]
        self.results.run["tuned"] = {
            "name": chosen.name,
            "config": format_config(chosen.config),
            "image_size": None if chosen.image_size is None else list(chosen.image_size),
            "budget": tuning.budget.share,
            "by": tuning.budget.by,
            "unit": space.unit,
            "evaluations": trials.used,
            "seconds": round(trials.seconds, 1),
            "choosing": choosing,
            "labels": trials.num_labels,
            "rows": self.rows,
            "gains": self.gains,
            "sensitivities": tuning.sensitivities,
            "time_unmerged_exact_last_block": tuning.front_seconds.get(EXACT),
            "front": [
                {
                    "budget": point.budget,
                    "name": point.trial.variant.name,
                    "divergence": point.trial.loss,
                    "gflops": point.trial.gflops,
                    "share": space.share(point.trial.variant),
                    "time": tuning.front_seconds.get(f"{point.budget:g}"),
                }
                for _, point in sorted(tuning.finder.points.items(), reverse=True)
            ],
            "trials": [
                {"name": trial.variant.name, "divergence": trial.loss, "gflops": trial.gflops}
                for trial in trials.done.values()
            ],
        }
        self.results.run["notes"] = [*tuning.notes, *self.results.run.get("notes", ())]

    def _chosen_note(self, chosen: Variant, choosing: int) -> str:
        trials, share = self.tuning.trials, self.tuning.space.share(chosen)
        size = chosen.image_size
        view = "" if size is None else f" on images of {size[0]}x{size[1]} pixels, which the config does not hold"
        labels = f"{trials.num_labels} of them with labels" if trials.num_labels else "without labels"
        against = "".join(f"; {describe_gains(label, measures)}" for label, measures in self.gains.items())
        return (
            f"chosen on {choosing} samples ({labels}) by {trials.used} evaluations, confirmed on "
            f"{self.results.data['num_samples']} others: {chosen.name}{view}, {share:.3f} of the "
            f"{self.tuning.space.unit}{against}"
        )

    def _pays_from(self) -> str | None:
        """Return from which budget on merging is faster than what the unmerged model can do itself."""
        seconds = self.tuning.front_seconds
        if not seconds:
            return None
        to_beat, unit = seconds.get(EXACT, 1.0), self.tuning.space.unit
        front = [(budget, seconds[f"{budget:g}"]) for budget in sorted(self.tuning.finder.points, reverse=True)]
        start = break_even(front, to_beat)
        first = "nowhere on the front" if start is None else f"from about {start:.2f} of the {unit} on"
        alone = "the unmerged model" if EXACT not in seconds else "the unmerged model with its exact last block"
        times = ", ".join(f"{taken:.3f} at {budget:g}" for budget, taken in front)
        return (
            f"merging pays {first}: {alone} takes {to_beat:.3f} of the unmerged model's time, the front takes {times}"
        )

    def _doubts(self) -> list[str]:
        """Return a warning where the samples cannot tell the choice from the constant schedule."""
        point = self.tuning.finder.nearest(self.tuning.budget.share)
        variant = self.tuning.space.variant(CONSTANT, point.budget)
        other = None if variant is None else self.tuning.trials.done.get(variant.name)
        if other is None or other.variant.name == point.trial.variant.name:
            return []
        needed = samples_to_tell(point.trial, other)
        if needed is None:
            return []
        return [
            f"warning: the {len(point.trial.divergences)} samples to choose by do not tell the choice from constant "
            f"ToMe (95 % interval of the difference); it would take about {needed}"
        ]

"""Tune to a budget without labels: choose on some samples, confirm on others, beside what else costs as much."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ....config import MergeConfig
from ...job import Job
from ...model_state import plain_model
from ...running.batches import Batch, prepare
from ...running.loop import Progress as SampleProgress
from ...running.runner import evaluate
from ...store.results import Results
from .confirmation import Confirmation
from .controls import CONTROLS
from .front import BUDGETS
from .samples import COMMON, Subset, split_samples
from .spaces.projected import PROJECTED
from .trials import Progress
from .tuning_run import TuningRun

MAX_EVALUATIONS = 45
PLACES = ("auto", "tower", "projected")
"""The values of `MergeConfig.where` at which a budget means something."""
UNITS = {"gflops": "GFLOPs", "time": "time"}


@dataclass(frozen=True)
class Budget:
    """What is asked for; see `tune_to_budget`."""

    share: float = 0.5
    by: str = "gflops"
    max_drop: float | None = None
    sure: bool = True
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.share, (int, float)) and 0 < self.share <= 1):
            raise ValueError(f"`budget` is {self.share!r}; it takes a share of the unmerged model's cost, in (0, 1].")
        if self.by not in UNITS:
            raise ValueError(f"`by` is {self.by!r}; it takes one of {', '.join(map(repr, UNITS))}.")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise ValueError(f"`max_drop` is {self.max_drop!r}; it takes points, a number of at least 0.")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 100:
            raise ValueError(f"`min_agreement` is {self.min_agreement!r}; it takes a percentage, 0 to 100.")
        if self.min_agreement is not None and self.max_drop is None:
            raise ValueError(
                "`min_agreement` holds beside a `max_drop` or alone, not with a budget; leave the budget out."
            )

    @classmethod
    def of(
        cls,
        budget: float | None = None,
        max_drop: float | None = None,
        min_agreement: float | None = None,
        *,
        by: str = "gflops",
        sure: bool = True,
    ) -> Budget:
        """Return what a call asks for: half of the cost where it names nothing.

        A least agreement alone allows any drop.

        Raises:
            ValueError: there are a budget and a largest drop, or a value out of its range.
        """
        if budget is not None and max_drop is not None:
            raise ValueError(
                "There are both a `budget` (--budget) and a `max_drop` (--max-drop): the one is met, the other held. "
                "Give one."
            )
        if budget is None and max_drop is None and min_agreement is not None:
            max_drop = 100.0
        return cls(0.5 if budget is None else budget, by, max_drop, sure, min_agreement)


def tune_to_budget(
    job: Job,
    budget: Budget,
    *,
    methods: Sequence[str] = ("tome", "mame"),
    where: str = "auto",
    image_size: str = "fixed",
    use_labels: bool = True,
    controls: Sequence[str] = ("gflops", "time"),
    against: Sequence[str] = CONTROLS,
    also: Sequence[float] = (),
    choose: int = COMMON,
    confirm: int | None = 1000,
    seed: int = 0,
    max_evaluations: int = MAX_EVALUATIONS,
    time_limit: float | None = None,
    front: Sequence[float] = BUDGETS,
    by_block: bool = False,
    out: Path | None = None,
    batch_size: int = 16,
    on_trial: Progress | None = None,
    on_sample: SampleProgress | None = None,
) -> tuple[MergeConfig, Results]:
    """Return the config that is nearest to the unmerged model within a budget, and its results on other samples.

    Args:
        job: the model, its data and how the two meet; the data need no labels.
        budget: a share of the GFLOPs (matching counted) or of the time, or the largest drop, which the strongest
            config of the front has to hold on the confirming samples; the unmerged model where none does.
        methods: what to choose among; of ToMe also the schedule, the metric, what is protected and the norm.
        where: `"auto"` and `"tower"` for the blocks of a tower; `"projected"` for the image tokens in front of a
            language model, of which `budget` is then the share that is left.
        image_size: `"fixed"`, or `"free"` to let the search take smaller images too.
        use_labels: choose by the labels too, where there are any; without them, by the unmerged model's outputs alone.
        controls: what is shown beside the choice: other ways at equal GFLOPs, and at equal measured time.
        against: what these controls are, of `CONTROLS`.
        also: budgets of the front that are confirmed too, each beside constant ToMe.
        choose, confirm: how many samples to choose by, and to confirm on (`None` for all others).
        seed: for the draw of the samples.
        max_evaluations: passes over the samples to choose by.
        time_limit (*optional*): seconds that the search may take; the confirmation is not counted.
        front: the other budgets that are searched from the winner at this one.
        by_block: measure too how far the outputs move where tokens merge in one block alone.
        out (*optional*): folder in which trials and samples are kept; the same call resumes from there.
        batch_size, on_trial, on_sample: as in `evaluate`.

    Raises:
        ValueError: a budget that nothing meets, too few samples or samples that are all alike, GFLOPs that are not
            known, a time limit too short for one evaluation, or what `evaluate` raises.
    """
    if image_size not in ("fixed", "free"):
        raise ValueError(f"`image_size` is {image_size!r}; it takes 'fixed' or 'free'.")
    if where not in PLACES:
        raise ValueError(f"`where` is {where!r}; tuning takes one of {', '.join(map(repr, PLACES))}.")
    chosen_by, confirmed_on = split_samples(job.data, choose, confirm, seed)
    with plain_model(job.model) as state:
        if where == PROJECTED:
            job = replace(job, place=PROJECTED)
        tuning = TuningRun(job, budget, batch_size, _read(job, chosen_by, batch_size), out, where)
        tuning.make_space(image_size == "free")
        tuning.search(methods, use_labels, max_evaluations, time_limit, front, seed, on_trial)
        if by_block:
            tuning.measure_blocks()
        variants = tuning.variants(tuning.choose(), controls, against, also)
        tested = [*variants.values(), *(tuning.front() if budget.max_drop is not None else [])]
        with nullcontext(out) if out is not None else TemporaryDirectory() as place:
            folder = Path(place) / "confirmed"
            confirming = replace(job, data=confirmed_on)
            results = evaluate(confirming, tested, batch_size=batch_size, on_progress=on_sample, out=folder)
            confirmation = Confirmation(tuning, results, variants)
            confirmation.compare(folder)
    chosen = confirmation.choice()
    confirmation.describe(chosen, len(chosen_by))
    results.run["notes"] = [*results.run["notes"], *state]
    return chosen.config, results


def _read(job: Job, subset: Subset, batch_size: int) -> list[Batch]:
    samples = list(subset)
    parts = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    batches = [batch for part in parts if (batch := prepare(job, part)[0]) is not None]
    if not batches:
        raise ValueError(f"None of the {len(subset)} samples drawn from {subset.name} can be read.")
    return batches

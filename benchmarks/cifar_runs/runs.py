"""Which runs there are: models trained from scratch, what unmerged ones are trained on to, and candidates."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hf_tome import MergeConfig
from hf_tome.config.text import is_unmerged

BATCH_SIZE = 25
WARMUP_EPOCHS = 0.25
DECAY_SHARE = 0.3
"""The share of a run from scratch, at its end, in which the learning rate falls to zero; it is constant before."""

CHOICE_EPOCHS = 1.0

GRAD_NORM = 5.0
"""As in Swin's recipe, by which MaMe's paper trains: a source that is barely similar to several destinations gives a
gradient of any size, and AdamW needs a thousand steps to forget one."""

HALF = {
    "tome": MergeConfig(r=64),
    "mame": MergeConfig(method="mame", threshold=0.95, keep_ratio=0.5, layers=[0]),
}
"""About half of the GFLOPs."""
CONTROL = {"tome-first-block": MergeConfig(r=[128, 0, 0, 0])}
"""ToMe that merges all it can in the first block, as MaMe does in HALF: which of the two makes a difference?"""

STRONG = {
    "tome-strong": MergeConfig(r=[128, 64, 32, 16]),
    "mame-strong": MergeConfig(method="mame", threshold=0.0, adaptive_pruning=False, keep_ratio=0.5, layers=[0, 1, 2]),
}
"""A third of the GFLOPs, and the settings of each method that cost most off the shelf."""
WAYS = {"tuned": "fine-tuned", "last-block": "last block alone", "distilled": "distilled"}


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        name: of its files.
        model: a key of `CONFIGS`.
        config: what merges.
        epochs: how long.
        start: the run whose weights it begins with, of the same seed; from scratch where there is none.
        last_block: whether the last block alone is trained.
        distils: whether the model that it starts from, unmerged, teaches it.
        learning_rate: the highest.
        max_grad_norm: where the norm of the gradient is clipped.
    """

    name: str
    model: str = "vit"
    config: MergeConfig = field(default_factory=MergeConfig)
    epochs: float = 1.0
    start: str | None = None
    last_block: bool = False
    distils: bool = False
    learning_rate: float = 1.5e-3
    max_grad_norm: float | None = None

    @property
    def merges(self) -> bool:
        """Whether anything merges."""
        return not is_unmerged(self.config)

    def describe(self) -> dict[str, Any]:
        """Return its settings as JSON values."""
        return {**asdict(self), "config": self.config.to_dict()}

    def rate_at(self, epoch: float) -> float:
        """Return the learning rate after so many epochs: a trapezoid from scratch, else falling from the beginning."""
        warmup = WARMUP_EPOCHS if self.start is None else WARMUP_EPOCHS / 10
        decay = self.epochs * DECAY_SHARE if self.start is None else self.epochs - warmup
        return self.learning_rate * max(0.0, min(1.0, epoch / warmup, (self.epochs - epoch) / decay))

    @property
    def decays_from(self) -> float:
        """The epoch from which the learning rate falls, of a run from scratch."""
        return self.epochs * (1 - DECAY_SHARE)

    def shorter(self, name: str, times: float) -> Run:
        """Return a run that is so many times shorter, and the same as this one until its learning rate falls."""
        return replace(self, name=name, epochs=self.epochs / times)


def list_runs(share: float = 1.0) -> list[Run]:
    """Return all runs but the unmerged ones at equal time, in their order; `share` of the epochs."""
    scratch, tuned, swin = (epochs * share for epochs in (2.0, 0.25, 1.0))
    tune: dict[str, Any] = {"epochs": tuned, "start": "unmerged", "learning_rate": 5e-4}
    runs = [Run("unmerged", epochs=scratch)]
    for name, config in {**HALF, **CONTROL}.items():
        clipped = GRAD_NORM if config.method == "mame" else None
        runs.append(Run(name, config=config, epochs=scratch, max_grad_norm=clipped))
    runs += [Run("unmerged-tuned", **tune)]
    for name, config in {**HALF, **STRONG}.items():
        runs += [
            Run(f"{name}-tuned", config=config, **tune),
            Run(f"{name}-last-block", config=config, last_block=True, **tune),
            Run(f"{name}-distilled", config=config, distils=True, **tune),
        ]
    swins = {"swin": "swin", "mame-swin": "mame_swin"}
    return [*runs, *(Run(name, key, epochs=swin, max_grad_norm=GRAD_NORM) for name, key in swins.items())]


def list_candidates() -> list[Run]:
    """Return short runs that compare the settings of MaMe, and the unmerged model beside them."""
    candidates = {
        "unmerged": MergeConfig(),
        "mame-0.5": replace(HALF["mame"], threshold=0.5),
        "mame-0.8": replace(HALF["mame"], threshold=0.8),
        "mame-0.95": replace(HALF["mame"], threshold=0.95),
        "mame-0.95-two-blocks": replace(HALF["mame"], threshold=0.95, keep_ratio=0.6, layers=[0, 1]),
        "mame-0.5-apart": replace(HALF["mame"], threshold=0.5, layers=[0, 2]),
    }
    return [Run(name, config=config, epochs=CHOICE_EPOCHS) for name, config in candidates.items()]

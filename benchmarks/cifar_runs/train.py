"""One training run: a JSON record and a checkpoint, from which it goes on where it was cut off."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div

from hf_tome import MergeConfig, apply
from hf_tome.config.text import is_unmerged
from hf_tome.files import write_whole

from .data import Pictures
from .models import build, class_token_and_logits, train_last_block_alone

BATCH_SIZE = 50
STEPS_BETWEEN_CHECKPOINTS = 50
WARMUP_STEPS = 50
AVERAGE_DECAY = 0.99
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        name: of its files.
        model: a key of `CONFIGS`.
        config: what merges.
        epochs: how long; a run from scratch is evaluated here and, where it merges, goes on for the unmerged time.
        start: the run whose weights it begins with; from scratch where there is none.
        last_block: whether the last block alone is trained.
        distils: whether the model that it starts from, unmerged, teaches it.
        learning_rate: constant after the warm-up from scratch, falling to zero otherwise.
    """

    name: str
    model: str = "vit"
    config: MergeConfig = field(default_factory=MergeConfig)
    epochs: float = 1.0
    start: str | None = None
    last_block: bool = False
    distils: bool = False
    learning_rate: float = 1e-3

    @property
    def from_scratch(self) -> bool:
        """Whether it begins with random weights."""
        return self.start is None

    def describe(self) -> dict[str, Any]:
        """Return its settings as JSON values."""
        return {**asdict(self), "config": self.config.to_dict()}


def stored_record(folder: Path, name: str, seed: int) -> dict[str, Any] | None:
    """Return the record of a run that has ended, or `None`."""
    path = folder / f"{name}-{seed}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def weights_path(folder: Path, name: str, seed: int) -> Path:
    """Return where the weights of a run that has ended are."""
    return folder / f"{name}-{seed}.pt"


def train(run: Run, seed: int, pictures: Pictures, folder: Path, longer: float = 1.0) -> dict[str, Any]:
    """Train, or go on with a run that was cut off, and return its record.

    Args:
        run: what to train.
        seed: of the weights and of the order of images.
        pictures: what to train and test on.
        folder: where records and checkpoints are.
        longer: how many times as many steps it goes on for, with another evaluation in the end.

    Raises:
        SystemExit: the folder has a run of this name with other settings.
    """
    steps_per_epoch = pictures.steps_per_epoch(BATCH_SIZE)
    num_steps = max(1, round(run.epochs * steps_per_epoch))
    settings = {**run.describe(), "seed": seed, "images": len(pictures.train_labels)}
    record = stored_record(folder, run.name, seed)
    if record is not None:
        _check_settings(run, settings, record["settings"])
        return record
    state = _Training(run, seed, folder, num_steps)
    state.resume(settings)
    evaluations = {num_steps: "accuracy", round(num_steps * longer): "accuracy_at_equal_time"}
    if longer == 1:
        evaluations = {num_steps: "accuracy"}
    last = max(evaluations)
    while state.step < last:
        state.train_step(*pictures.batch(seed, state.step, BATCH_SIZE))
        if state.step in evaluations:
            state.results[evaluations[state.step]] = state.evaluate(pictures)
        if state.step == num_steps:
            torch.save(state.averaged(), weights_path(folder, run.name, seed))
        if state.step % STEPS_BETWEEN_CHECKPOINTS == 0 and state.step < last:
            state.save(settings)
            print(f"{run.name} seed {seed}: step {state.step} of {last}, loss {state.loss:.3f}", file=sys.stderr)
    record = {
        "settings": settings,
        "epochs": run.epochs,
        "epochs_at_equal_time": last / steps_per_epoch if longer != 1 else None,
        "processor_seconds_per_epoch": state.seconds / last * steps_per_epoch,
        **state.results,
    }
    write_whole(folder / f"{run.name}-{seed}.json", json.dumps(record, indent=1) + "\n")
    state.checkpoint.unlink(missing_ok=True)
    print(f"{run.name} seed {seed}: {state.results}", file=sys.stderr)
    return record


def accuracy(model: nn.Module, pictures: Pictures) -> float:
    """Return the share of test images that a model gets right, in percent."""
    model.eval()
    correct = 0
    with torch.inference_mode():
        for images, labels in zip(pictures.test_images.split(100), pictures.test_labels.split(100)):
            correct += int((model(pixel_values=images).logits.argmax(-1) == labels).sum())
    model.train()
    return 100 * correct / len(pictures.test_labels)


class _Training:
    """The state of a run between two steps."""

    def __init__(self, run: Run, seed: int, folder: Path, num_steps: int):
        self.run, self.num_steps = run, num_steps
        self.checkpoint = folder / f"{run.name}-{seed}.checkpoint"
        self.model = build(run.model, seed)
        self.teacher: nn.Module | None = None
        if run.start is not None:
            weights = torch.load(weights_path(folder, run.start, seed), weights_only=True)
            self.model.load_state_dict(weights)
            if run.distils:
                self.teacher = build(run.model, seed).eval().requires_grad_(False)
                self.teacher.load_state_dict(weights)
        if run.last_block:
            train_last_block_alone(self.model)
        if not is_unmerged(run.config):  # Swin takes no config at all
            apply(self.model, run.config)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=run.learning_rate, weight_decay=0.05)
        self.step, self.seconds, self.loss = 0, 0.0, 0.0
        self.results: dict[str, float] = {}

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step of the optimizer, and average the weights."""
        begun = time.process_time()
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.learning_rate * self._share_of_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(images, labels)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        decay = min(AVERAGE_DECAY, self.step / (self.step + 10)) if self.run.from_scratch else 0.0
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)
        self.seconds += time.process_time() - begun
        self.loss = loss.item()

    def _share_of_learning_rate(self) -> float:
        if self.run.from_scratch:
            return min(1.0, (self.step + 1) / WARMUP_STEPS)
        return 1 - self.step / self.num_steps

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.teacher is None:
            return cross_entropy(self.model(pixel_values=images).logits, labels)
        features, logits = class_token_and_logits(self.model, images)
        with torch.no_grad():
            taught_features, taught_logits = class_token_and_logits(self.teacher, images)
        soft = kl_div(
            (logits / TEMPERATURE).log_softmax(-1),
            (taught_logits / TEMPERATURE).log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
        similar = cosine_similarity(features, taught_features, dim=-1).mean()
        return cross_entropy(logits, labels) + TEMPERATURE**2 * soft + (1 - similar)

    def averaged(self) -> Mapping[str, Tensor]:
        """Return the averaged weights under their names."""
        average = {id(parameter): mean for parameter, mean in zip(self.parameters, self.average)}
        return {
            name: average.get(id(value), value).clone()
            for name, value in self.model.state_dict(keep_vars=True).items()
        }

    def evaluate(self, pictures: Pictures) -> float:
        """Return the accuracy of the averaged weights."""
        with torch.no_grad():
            trained = [parameter.clone() for parameter in self.parameters]
            torch._foreach_copy_(self.parameters, self.average)
            result = accuracy(self.model, pictures)
            torch._foreach_copy_(self.parameters, trained)
        return result

    def save(self, settings: Mapping[str, Any]) -> None:
        """Write the checkpoint, whole or not at all."""
        values = {name: getattr(self, name) for name in ("step", "seconds", "results", "average")}
        values |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "settings": settings}
        part = self.checkpoint.with_suffix(".part")
        torch.save(values, part)
        part.replace(self.checkpoint)

    def resume(self, settings: Mapping[str, Any]) -> None:
        """Go on from the checkpoint, where there is one."""
        if not self.checkpoint.is_file():
            return
        values = torch.load(self.checkpoint, weights_only=True)
        _check_settings(self.run, settings, values["settings"])
        self.model.load_state_dict(values["model"])
        self.optimizer.load_state_dict(values["optimizer"])
        self.step, self.seconds, self.results = values["step"], values["seconds"], values["results"]
        self.average = values["average"]


def _check_settings(run: Run, settings: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    current = json.loads(json.dumps(settings))
    changed = [name for name in current if current[name] != json.loads(json.dumps(before)).get(name)]
    if changed:
        raise SystemExit(
            f"{run.name} was run with other settings ({', '.join(changed)}). Choose another --work folder, or delete "
            "its files."
        )

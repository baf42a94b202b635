"""One training run: a JSON record and its weights, and checkpoints from which it goes on where it was cut off."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div

from hf_tome import apply
from hf_tome.files import replacing, write_whole

from .data import Images
from .models import build, class_token_and_logits, train_last_block_alone
from .records import check_settings, checkpoint_path, settings_of, stored_record, weights_path
from .runs import BATCH_SIZE, Run

STEPS_BETWEEN_CHECKPOINTS = 100
WEIGHT_DECAY = 0.05
TEMPERATURE = 2.0
STATE = ("step", "seconds", "clipped_norms")


def train(run: Run, seed: int, images: Images, folder: Path, shorter: Sequence[Run] = ()) -> None:
    """Train, or go on with a run that was cut off, and write its record, unless there is one.

    Args:
        run: what to train.
        seed: of the weights and of the order of images.
        images: what to train and test on.
        folder: where records, weights and checkpoints are.
        shorter: runs that begin as this one does; each finds a checkpoint where its learning rate begins to fall.

    Raises:
        SystemExit: the folder has a run of this name with other settings, or lacks the one that this begins from.
    """
    if stored_record(run, seed, images, folder) is not None:
        return
    training = _Training(run, seed, folder, images)
    training.resume()
    while training.step < training.num_steps:
        training.train_step()
        training.save_where_due()
        training.save_beginnings(shorter)
    record = {
        "settings": settings_of(run, seed, images),
        "accuracy": accuracy(training.model, images),
        "processor_seconds_per_epoch": training.seconds / training.step * training.steps_per_epoch,
        "clipped_norms": training.clipped_norms,
    }
    with replacing(weights_path(folder, run.name, seed)) as path:
        torch.save(training.model.state_dict(), path)
    write_whole(folder / f"{run.name}-{seed}.json", json.dumps(record, indent=1) + "\n")
    checkpoint_path(folder, run.name, seed).unlink(missing_ok=True)
    print(f"{run.name} seed {seed}: accuracy {record['accuracy']:.2f} %", file=sys.stderr)


def accuracy(model: nn.Module, images: Images) -> float:
    """Return the share of test images that a model classifies correctly, in percent."""
    model.eval()
    correct = 0
    with torch.inference_mode():
        for batch, labels in zip(images.test_images.split(100), images.test_labels.split(100)):
            correct += int((model(pixel_values=batch).logits.argmax(-1) == labels).sum())
    model.train()
    return 100 * correct / len(images.test_labels)


class _Training:
    """The state of a run between two steps."""

    def __init__(self, run: Run, seed: int, folder: Path, images: Images):
        self.run, self.seed, self.folder, self.images = run, seed, folder, images
        self.steps_per_epoch = images.steps_per_epoch(BATCH_SIZE)
        self.num_steps = max(1, round(run.epochs * self.steps_per_epoch))
        self.step, self.seconds, self.loss = 0, 0.0, 0.0
        self.clipped_norms: list[float] = []
        self.model = build(run.model, seed)
        self.teacher: nn.Module | None = None
        if run.start is not None:
            self._start_from(weights_path(folder, run.start, seed))
        if run.last_block:
            train_last_block_alone(self.model)
        if run.merges:  # Swin takes no config at all
            apply(self.model, run.config)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=run.learning_rate, weight_decay=WEIGHT_DECAY)

    def _start_from(self, path: Path) -> None:
        """Load the weights of the run that this one starts from, into its teacher too."""
        if not path.is_file():
            raise SystemExit(f"{self.run.name} starts from {path}, which is missing. Run {self.run.start} first.")
        weights = torch.load(path, weights_only=True)
        self.model.load_state_dict(weights)
        if self.run.distils:
            self.teacher = build(self.run.model, self.seed).eval().requires_grad_(False)
            self.teacher.load_state_dict(weights)

    def train_step(self) -> None:
        """Take one step of the optimizer."""
        begun = time.process_time()
        images, labels = self.images.batch(self.seed, self.step, BATCH_SIZE)
        self.step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.rate_at((self.step - 0.5) / self.steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(images, labels)
        loss.backward()
        if self.run.max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.run.max_grad_norm).item()
            self.clipped_norms += [norm] if norm > self.run.max_grad_norm else []
        self.optimizer.step()
        self.seconds += time.process_time() - begun
        self.loss = loss.item()

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

    def save_where_due(self) -> None:
        """Write a checkpoint every so many steps."""
        if self.step % STEPS_BETWEEN_CHECKPOINTS == 0 and self.step < self.num_steps:
            self._save(self.run)
            place = f"step {self.step} of {self.num_steps}, loss {self.loss:.3f}"
            print(f"{self.run.name} seed {self.seed}: {place}", file=sys.stderr)

    def save_beginnings(self, shorter: Sequence[Run]) -> None:
        """Write the checkpoints of shorter runs whose learning rate begins to fall here."""
        for run in shorter:
            if self.step == int(run.decays_from * self.steps_per_epoch):
                self._save(run)

    def _save(self, run: Run) -> None:
        settings = settings_of(run, self.seed, self.images)
        values = {name: getattr(self, name) for name in STATE} | {"settings": settings}
        values |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with replacing(checkpoint_path(self.folder, run.name, self.seed)) as unfinished:
            torch.save(values, unfinished)

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        path = checkpoint_path(self.folder, self.run.name, self.seed)
        if not path.is_file():
            return
        values = torch.load(path, weights_only=True)
        check_settings(path, settings_of(self.run, self.seed, self.images), values["settings"])
        self.model.load_state_dict(values["model"])
        self.optimizer.load_state_dict(values["optimizer"])
        for name in STATE:
            setattr(self, name, values[name])

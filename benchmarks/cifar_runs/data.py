"""CIFAR-10 in memory, as normalised tensors; the batches of an epoch are known from its seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor

IMAGE, LABEL = ("img", "image"), ("label", "labels")


@dataclass(frozen=True)
class Images:
    """Training and test images (N, 3, 32, 32) with their labels (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def load(cls, folder: Path) -> Images:
        """Read the parquet files `train*` and `test*` of a folder."""
        files = {split: sorted(map(str, folder.glob(f"{split}*.parquet"))) for split in ("train", "test")}
        missing = [split for split, paths in files.items() if not paths]
        if missing:
            raise SystemExit(f"{folder} has no {missing[0]}*.parquet; pass CIFAR-10's folder with --data.")
        splits = load_dataset("parquet", data_files=files)
        return cls(*_tensors(splits["train"]), *_tensors(splits["test"]))

    @classmethod
    def random(cls, num_train: int = 100, num_test: int = 50) -> Images:
        """Make noise of ten classes: to see that everything runs."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(num_train + num_test, 3, 32, 32, generator=generator)
        labels = torch.arange(num_train + num_test) % 10
        return cls(images[:num_train], labels[:num_train], images[num_train:], labels[num_train:])

    def hold_out(self, num_images: int) -> Images:
        """Return the last training images as the test images of the others: to choose settings on."""
        images, labels = self.train_images, self.train_labels
        return Images(images[:-num_images], labels[:-num_images], images[-num_images:], labels[-num_images:])

    def batch(self, seed: int, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step: each epoch in an order of its own, images flipped at random."""
        epoch, index = divmod(step, self.steps_per_epoch(batch_size))
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(self.train_labels), generator=generator)
        flips = torch.rand(len(order), generator=generator) < 0.5
        chosen = order[index * batch_size : (index + 1) * batch_size]
        images = self.train_images[chosen]
        return torch.where(flips[chosen][:, None, None, None], images.flip(-1), images), self.train_labels[chosen]

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the whole batches of an epoch."""
        return len(self.train_labels) // batch_size


def _tensors(rows) -> tuple[Tensor, Tensor]:
    image = next(name for name in IMAGE if name in rows.column_names)
    label = next(name for name in LABEL if name in rows.column_names)
    pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in rows[image]])  # (N, 32, 32, 3)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
    return images, torch.tensor(rows[label])

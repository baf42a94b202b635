"""Labelled images or clips with the classes that they are trained on, and what is wrong with those that are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_tome.evaluation.data.columns import content_and_label_columns, label_names
from hf_tome.evaluation.data.digits import load_digits
from hf_tome.evaluation.data.media_files import stored_source
from hf_tome.evaluation.data.split_names import DataError
from hf_tome.evaluation.data.splits import open_image, open_split
from hf_tome.media.video import frame_count, read_frames

HELD_OUT = ("validation", "test")
NUM_CLIPS = {"train": 1257, "test": 540}
SHOWN = 5


@dataclass(frozen=True)
class Split:
    """The samples of a split: contents as `datasets` stores them or decoded, and their classes by number."""

    contents: Sequence[Any]
    labels: Sequence[int]
    names: tuple[str, ...]

    def first(self, limit: int | None, seed: int = 0) -> Split:
        """Return so many samples, drawn at random."""
        if limit is None or limit >= len(self.labels):
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.labels))[:limit])
        contents = torch.utils.data.Subset(self.contents, chosen.tolist())
        return Split(contents, [self.labels[index] for index in chosen], self.names)


class Samples(torch.utils.data.Dataset):
    """What a model takes of a split: `pixel_values` as its processor makes them, and `labels`."""

    def __init__(self, split: Split, read: Callable[[Any], Tensor]):
        self.split, self.read = split, read

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.read(self.split.contents[index]), "labels": self.split.labels[index]}


def reader(kind: str, processor: Any, model_config: Any) -> Callable[[Any], Tensor]:
    """Return what makes `pixel_values` of one sample."""
    if kind == "Video":
        num_frames = frame_count(model_config)

        def read(stored: Any) -> Tensor:
            source = stored_source(stored) if isinstance(stored, dict) else stored
            frames = list(read_frames(source, num_frames))
            return processor(frames, return_tensors="pt")["pixel_values"][0]

        return read
    return lambda stored: processor(open_image(stored), return_tensors="pt")["pixel_values"][0]


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a batch.

    Raises:
        ValueError: the processor leaves samples in several sizes.
    """
    shapes = Counter(tuple(sample["pixel_values"].shape) for sample in samples)
    if len(shapes) > 1:
        raise ValueError(
            f"The samples come out of the model's processor in several sizes ({', '.join(map(str, shapes))}), which "
            "cannot be one batch. Let it resize to one: set `do_resize` and a `size` with height and width in its "
            "preprocessor_config.json, or `--batch-size 1`."
        )
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
    }


def open_data(source: str, kind: str) -> tuple[Split, Split]:
    """Return what to train on and what to evaluate on, of a folder, a Hub id, `"digits"` or `"clips"`.

    Raises:
        DataError: a split is missing, or its labels cannot be trained on.
    """
    train = _open(source, "train", kind)
    held_out = _open_held_out(source, kind)
    trained = {train.names[label] for label in train.labels}
    if len(trained) < 2:
        raise DataError(
            f"All {len(train.labels)} samples of {source} to train on are of one class "
            f"({', '.join(trained) or 'none'}), so there is nothing to tell apart. A folder needs one folder a class: "
            "train/<class>/<file>."
        )
    unknown = sorted({held_out.names[label] for label in held_out.labels} - trained)
    if unknown:
        raise DataError(
            f"{source} has classes to evaluate on that are not trained: {', '.join(unknown[:SHOWN])}. The splits need "
            "the same classes."
        )
    labels = [train.names.index(held_out.names[label]) for label in held_out.labels]
    return train, Split(held_out.contents, labels, train.names)


def _open_held_out(source: str, kind: str) -> Split:
    if source in ("digits", "clips"):
        return _open(source, "test", kind)
    failures = []
    for name in HELD_OUT:
        try:
            return _open(source, name, kind)
        except DataError as error:
            failures.append(error)
    raise failures[0]


def _open(source: str, split: str, kind: str) -> Split:
    if source == "clips":
        return _clips(split)
    if source == "digits":
        rows = load_digits(split)
        content, label = "image", "label"
    else:
        rows = open_split(source, split, kind=kind).rows
        content, label = content_and_label_columns(rows, kind, source)
    names = label_names(rows, label, source)
    values = rows[label][:]
    missing = [index for index, value in enumerate(values) if value is None or value in ("", -1)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(values)} samples in {split} of {source} have no label, the first is number "
            f"{missing[0]}. Remove them, or train on a split that has labels."
        )
    labels = [names.index(value) if isinstance(value, str) else int(value) for value in values]
    return Split(rows[content], labels, tuple(names))


def _clips(split: str) -> Split:
    """Draw clips of moving digits, the same ones each time."""
    from hf_tome.demo import digits_scenes as scenes

    material = scenes.load_material(split)
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    which = torch.arange(NUM_CLIPS[split]) % len(material.labels)
    directions = torch.randint(len(scenes.DIRECTIONS), (len(which),), generator=generator)
    clips = [
        scenes.to_bytes(scenes.make_clips(material, part, directions[part], generator)[0]) for part in which.split(64)
    ]
    labels = scenes.clip_label(material.labels[which], directions).tolist()
    return Split(np.concatenate(clips), labels, tuple(scenes.clip_names()))

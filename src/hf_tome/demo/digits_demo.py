"""The demos: each a small model that ships with the package, held-out digits as files, and a task that reads both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..evaluation.data import digits
from ..evaluation.job import Job
from ..evaluation.options import JobOptions
from ..evaluation.store.results import Results
from ..evaluation.tasks.registry import build_job
from . import digits_masks, digits_questions, digits_scenes, python_texts
from .digits_scenes import NAMES
from .masks_picture import masks_picture

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 32
"""Scenes that are drawn at once."""
TEXT_LENGTH = 3000
"""Characters of a text, of which the language model reads the beginning."""


@dataclass(frozen=True)
class Demo:
    """One small model and what it is shown.

    Attributes:
        task: a task of `tasks.TASKS`.
        model: the model's folder in `digits.MODELS`.
        data: what the data are called in the results.
        write: writes so many samples of split `test` into a folder.
        samples: how many `hf-tome demo` takes.
        configs: what `hf-tome demo` compares, as `--config` takes it.
        pictured: those of which it draws the tokens.
        drawn: how many samples it draws; 0 where there is nothing to draw.
        shown: a sample's content to the image or the clip that is drawn, and a title.
        options: more for `JobOptions`.
        picture: draws the first samples from the job, the configs to draw, the results and how many samples; by
            default the tokens that are left are drawn.
        caption: what is said of the picture.
    """

    task: str
    model: str
    data: str
    write: Callable[[Path, int], None]
    samples: int
    configs: tuple[str, ...]
    pictured: tuple[str, ...] = ("r=16", "r=32", "method=mame,threshold=0.8")
    drawn: int = 4
    shown: Callable[[Any], tuple[Any, str]] = lambda image: (image, "")
    options: dict[str, Any] = field(default_factory=dict)
    picture: Callable[[Job, Sequence[str], Results, int], Image] | None = None
    caption: str = "Held-out digits as the model sees them, and the tokens left after the last block."

    def job(self, place: Path, limit: int | None = None, *, device: str = "cpu", models: Path = digits.MODELS) -> Job:
        """Write the data into a new folder in `place`, and load the task on them.

        Args:
            place: an existing folder.
            limit (`int`, *optional*): how many samples, at most one a held-out digit; by default `samples`.
            device: where the model runs.
            models: the folder of the models.

        Raises:
            FileExistsError: the data are there already.
        """
        folder = place / self.data
        folder.mkdir()
        self.write(folder, limit or self.samples)
        options = dict(self.options)
        if self.task == ZERO_SHOT:
            options["templates"] = place / "templates.txt"
            options["templates"].write_text("\n".join(digits.TEMPLATES))
        return build_job(
            self.task, JobOptions(str(models / self.model), str(folder), "test", device=device, **options)
        )


def write_digits(folder: Path, count: int) -> None:
    """Write held-out digits as a data set on disk."""
    import datasets

    rows = digits.load_digits("test")
    chosen = rows.select(sorted(_choose(len(rows), count).tolist()))
    datasets.DatasetDict({"test": chosen}).save_to_disk(folder)


def write_pictures(folder: Path, count: int) -> None:
    """Write pictures of one held-out digit each as a data set on disk."""
    import datasets
    from PIL import Image

    material, generator = digits_scenes.load_material("test"), torch.Generator().manual_seed(digits.SCENE_SEED)
    images, labels = [], []
    for which in _choose(len(material.labels), count).split(BATCH):
        pictures, _ = digits_scenes.make_pictures(material, which, generator)
        images += [Image.fromarray(picture) for picture in digits_scenes.to_bytes(pictures)]
        labels += material.labels[which].tolist()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    datasets.DatasetDict({"test": rows}).save_to_disk(folder)


def write_clips(folder: Path, count: int) -> None:
    """Write clips of one moving held-out digit each, without loss, as `test/<class>/<number>.mkv`."""
    material, generator = digits_scenes.load_material("test"), torch.Generator().manual_seed(digits.SCENE_SEED)
    names = digits_scenes.clip_names()
    for number, (clip, label) in enumerate(_clips(material, _choose(len(material.labels), count), generator)):
        place = folder / "test" / names[label]
        place.mkdir(parents=True, exist_ok=True)
        _write_clip(place / f"{number:03}.mkv", clip)


def write_questions(folder: Path, count: int) -> None:
    """Write pictures of four held-out digits each, as `test.jsonl` and files beside it, and a question about each."""
    from PIL import Image

    material, generator = digits_scenes.load_material("test"), torch.Generator().manual_seed(digits.SCENE_SEED)
    lines: list[str] = []
    for first in _choose(len(material.labels), count).split(BATCH):
        others = torch.randint(len(material.labels), (len(first), len(digits_scenes.CORNERS) - 1), generator=generator)
        which = torch.cat([first[:, None], others], dim=1)
        which = which.gather(1, torch.rand(which.shape, generator=generator).argsort(dim=1))
        pictures, _ = digits_scenes.make_quartets(material, which, generator)
        labels = material.labels[which]
        asked = digits_questions.ask(labels, generator)
        right = digits_questions.answers(labels).gather(1, asked[:, None])[:, 0]
        for picture, question, answer in zip(digits_scenes.to_bytes(pictures), asked.tolist(), right.tolist()):
            name = f"{len(lines):03}.png"
            Image.fromarray(picture).save(folder / name)
            sample = {"image": name, "question": digits_questions.QUESTIONS[question], "answer": NAMES[answer]}
            lines.append(json.dumps(sample))
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n")


def write_scenes(folder: Path, count: int) -> None:
    """Write scenes of several held-out digits each as `test/images/<number>.png`, with their masks in `test/masks`."""
    from PIL import Image

    material, generator = digits_scenes.load_material("test"), torch.Generator().manual_seed(digits.SCENE_SEED)
    for name in ("images", "masks"):
        (folder / "test" / name).mkdir(parents=True)
    number = 0
    for which in _choose(len(material.labels), count).split(BATCH):
        pictures, masks = digits_masks.make_scenes(material, which, generator)
        for picture, mask in zip(digits_scenes.to_bytes(pictures), masks.to(torch.uint8).numpy()):
            Image.fromarray(picture).save(folder / "test" / "images" / f"{number:03}.png")
            Image.fromarray(mask).save(folder / "test" / "masks" / f"{number:03}.png")
            number += 1


def write_texts(folder: Path, count: int) -> None:
    """Write held-out pieces of Python's language reference as text files."""
    for number, (name, text) in enumerate(python_texts.held_out_texts(TEXT_LENGTH)[:count]):
        (folder / f"{number:03}-{name}.txt").write_text(text, encoding="utf-8")


def _choose(total: int, count: int) -> torch.Tensor:
    """Return the indices of so many held-out digits, in a random order that is always the same."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(digits.SCENE_SEED))[:count]


def _clips(material: Any, chosen: torch.Tensor, generator: torch.Generator) -> Iterator[tuple[Any, int]]:
    for which in chosen.split(BATCH):
        directions = torch.randint(len(digits_scenes.DIRECTIONS), (len(which),), generator=generator)
        clips, _ = digits_scenes.make_clips(material, which, directions, generator)
        labels = digits_scenes.clip_label(material.labels[which], directions)
        yield from zip(digits_scenes.to_bytes(clips), labels.tolist())


def _write_clip(path: Path, frames: Any) -> None:
    """Write frames (T, H, W, 3), `uint8`, with the lossless codec FFV1."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


IMAGES, CLIPS, ZERO_SHOT, MASKS, QUESTIONS = (
    "image-classification",
    "video-classification",
    "zero-shot-image-classification",
    "semantic-segmentation",
    "visual-question-answering",
)
TOME = ("r=8", "r=16", "r=32", "r=64")
MAME = ("method=mame,threshold=0.9", "method=mame,threshold=0.8", "method=mame,threshold=0.7")
PRUNED = ("method=random_prune,r=64",)
"""What shows that it matters which tokens go: as many as with r=64, at random."""
BY_SIZE = (
    *("r=32,proportional_attention=true", "r=64,proportional_attention=true"),
    "method=mame,threshold=0.9,proportional_attention=true",
)
"""ToMe leaves proportional attention out for VideoMAE, and MaMe everywhere; this one is better with it."""

CACHED = (
    *("keep_ratio=0.5,where=cache,size=fitted", "keep_ratio=0.5,where=cache,destinations=keydiff,size=fitted"),
    *("keep_ratio=0.5,where=cache", "method=attention_prune,keep_ratio=0.5,where=cache"),
    *("method=recent_prune,keep_ratio=0.5,where=cache", "method=random_prune,keep_ratio=0.5,where=cache"),
    *("keep_ratio=0.25,where=cache,size=fitted", "method=attention_prune,keep_ratio=0.25,where=cache"),
)
"""For a language model's cache, with what drops as many entries beside it."""

DEMOS: dict[str, Demo] = {
    "image": Demo(
        IMAGES,
        "digits-vit",
        "scikit-learn digits",
        write_digits,
        120,
        (*TOME, "r=128", *MAME, "method=mame,threshold=0.5"),
    ),
    "video": Demo(
        CLIPS,
        "digits-videomae",
        "moving digits",
        write_clips,
        80,
        (*TOME, *BY_SIZE, *PRUNED, *MAME),
        drawn=1,
        shown=lambda views: (views[0], ""),
    ),
    "clip": Demo(
        ZERO_SHOT,
        "digits-clip",
        "digits on photographs",
        write_pictures,
        200,
        (*TOME, *PRUNED, *MAME),
    ),
    "siglip": Demo(
        ZERO_SHOT,
        "digits-siglip",
        "digits on photographs",
        write_pictures,
        200,
        (*TOME, *PRUNED, *MAME),
    ),
    "scenes": Demo(
        MASKS,
        "digits-dinov2",
        "scenes of digits",
        write_scenes,
        60,
        (
            "r=32",
            "r=64",
            "r=96",
            "r=128",
            "r=392,layers=[1]",
            "method=mame,threshold=0.9",
            "method=mame,threshold=0.8",
        ),
        ("r=64", "r=96", "method=mame,threshold=0.9"),
        picture=masks_picture,
        caption="Held-out scenes, the right masks, and those of the unmerged and the merged model.",
    ),
    "questions": Demo(
        QUESTIONS,
        "digits-llava",
        "questions about digits",
        write_questions,
        120,
        (
            *("r=4", "r=8", "r=16", "r=8,layers=3-5", "r=16,layers=3-5"),
            *("r=48,where=projected", "r=96,where=projected", "method=random_prune,r=96,where=projected"),
            "method=mame,threshold=0.95",
        ),
        ("r=8", "r=16", "method=mame,threshold=0.95"),
        shown=lambda question: (question.image, question.prompt),
        options={"prompt": "{question}", "max_new_tokens": 4},
    ),
    "texts": Demo(
        "text-cache",
        "tiny-lm",
        "Python's language reference",
        write_texts,
        24,
        CACHED,
        drawn=0,
        options={"context_tokens": 192, "max_new_tokens": 32},
    ),
}
"""By the name of the subfolder that `hf-tome demo --task all` writes to."""

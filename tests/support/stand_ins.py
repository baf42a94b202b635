"""Small random models and data under the names that the documentation uses, in a folder: its commands run there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import small
import speaking
import torch
import transformers as tf
from PIL import Image

from hf_tome.demo.python_texts import held_out_texts


def deit(folder: Path) -> Path:
    """A classifier of images of 224 px, with few and large patches."""
    torch.manual_seed(0)
    config = tf.ViTConfig(**small.SMALL, image_size=224, patch_size=28, **small.labels("cat", "dog", "tree"))
    return small.save(folder, small.larger(tf.ViTForImageClassification(config)), small.image_processor(side=224))


MODELS: dict[str, Callable[[Path], Path]] = {
    "facebook/deit-base-patch16-224": deit,
    "MCG-NJU/videomae-base-finetuned-kinetics": small.videomae,
    "openai/clip-vit-base-patch32": small.dual,
    "MIT/ast-finetuned-audioset-10-10-0.4593": small.ast,
    "llava-hf/llava-1.5-7b-hf": speaking.llava,
    "microsoft/beit-base-finetuned-ade-640-640": small.segmenter,
    "depth-anything/Depth-Anything-V2-Small-hf": small.depth,
    "google/owlvit-base-patch32": small.owl,
    "openai/whisper-tiny.en": small.whisper,
}
"""A folder of that name below the working directory is loaded instead of the model on the Hub."""


def write_stand_ins(folder: Path) -> Path:
    """Write every model, an ImageNet, a Kinetics and an ESC-50 of a few files each, and one file of each kind."""
    for name, make in MODELS.items():
        make(folder / name)
    for number, name in enumerate(("cat", "dog", "tree") * 2):
        place = folder / "imagenet" / "validation" / name
        place.mkdir(parents=True, exist_ok=True)
        small.picture(number).save(place / f"{number}.png")
    (folder / "photographs").mkdir()
    for number in range(24):  # without labels
        small.picture(number).save(folder / "photographs" / f"{number:02}.png")
    small.picture().save(folder / "photo.jpg")
    for name in ("yoga", "arm wrestling"):
        small.write_clip(folder / "kinetics" / "validation" / name / "0.mp4")
    small.write_clip(folder / "clip.mp4")
    for name, frequency in (("cat", 440.0), ("thunder", 110.0)):
        small.write_sound(folder / "sounds" / "validation" / name / "0.wav", frequency)
    small.write_sound(folder / "sound.wav")
    _write_samples(folder / "captions", {"captions": ["a cat on a tree", "a red cat"]})
    _write_samples(folder / "questions", {"question": "what is it?", "choices": ["cat", "dog"], "answer": "B"})
    _write_maps(folder / "scenes" / "validation", "masks", np.random.default_rng(0).integers(0, 3, (48, 48)))
    _write_maps(folder / "rooms" / "validation", "depths", np.random.default_rng(0).integers(500, 9000, (48, 48)))
    _write_boxes(folder / "streets")
    small.write_sound(folder / "speech" / "a.wav")
    (folder / "speech" / "test.csv").write_text("path,text\na.wav,abc\n")
    (folder / "texts").mkdir()
    for name, text in held_out_texts(3000)[:2]:
        (folder / "texts" / f"{name}.txt").write_text(text)
    (folder / "names.txt").write_text("cat\ndog\ntree\n")
    (folder / "templates.txt").write_text("a photo of a {}\na big {}\n")
    return folder


def _write_maps(folder: Path, name: str, values: np.ndarray) -> None:
    for place in ("images", name):
        (folder / place).mkdir(parents=True)
    for number in range(3):
        small.picture(number).save(folder / "images" / f"{number}.png")
        Image.fromarray(values.astype(np.uint16 if values.max() > 255 else np.uint8)).save(
            folder / name / f"{number}.png"
        )


def _write_boxes(folder: Path) -> None:
    folder.mkdir()
    small.picture().save(folder / "0.png")
    boxes = [{"image_id": 0, "category_id": 1, "bbox": [4, 4, 20, 20]}]
    content = {
        "images": [{"id": 0, "file_name": "0.png"}],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "validation.json").write_text(json.dumps(content))


def _write_samples(folder: Path, texts: dict[str, object]) -> None:
    folder.mkdir()
    for number in range(3):
        small.picture(number).save(folder / f"{number}.png")
    lines = [json.dumps({"image": f"{number}.png", **texts}) for number in range(3)]
    (folder / "validation.jsonl").write_text("\n".join(lines))

"""Tuning end to end on every kind of model: what each gives is compared, and its samples are read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small
import speaking
from PIL import Image

import hf_tome
from hf_tome import MergeConfig
from hf_tome.cli.app import run

QUICK = {"choose": 8, "confirm": 8, "max_evaluations": 6, "batch_size": 8, "progress": False}


@dataclass(frozen=True)
class Kind:
    """A task, a small model and how a sample is written: into a folder, under a class name, with a number."""

    task: str
    model: Callable[[Path], Path]
    write: Callable[[Path, str, int], None]
    classes: tuple[str, ...] = ("cat", "dog", "tree")


def photograph(folder, label, number):
    (folder / label).mkdir(parents=True, exist_ok=True)
    small.picture(number).save(folder / label / f"{number}.png")


def clip(folder, label, number):
    (folder / label).mkdir(parents=True, exist_ok=True)
    small.write_clip(folder / label / f"{number}.mp4", length=16 + number)


def sound(folder, label, number):
    (folder / label).mkdir(parents=True, exist_ok=True)
    small.write_sound(folder / label / f"{number}.wav", 110.0 * (number + 1))


def masked(folder, label, number):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    small.picture(number).save(folder / "images" / f"{number}.png")
    mask = np.random.default_rng(number).integers(0, 3, (48, 48)).astype(np.uint8)
    Image.fromarray(mask).save(folder / "masks" / f"{number}.png")


def described(folder, label, number):
    folder.mkdir(parents=True, exist_ok=True)
    small.picture(number).save(folder / f"{number}.png")
    with (folder / "metadata.jsonl").open("a") as lines:
        lines.write(json.dumps({"file_name": f"{number}.png", "captions": [f"a {label}"]}) + "\n")


KINDS = {
    "clip": Kind("zero-shot-image-classification", small.dual, photograph),
    "siglip": Kind("zero-shot-image-classification", lambda folder: small.dual(folder, "Siglip"), photograph),
    "videomae": Kind("video-classification", small.videomae, clip, ("yoga", "arm wrestling")),
    "ast": Kind("audio-classification", small.ast, sound, ("cat", "thunder")),
    "upernet": Kind("semantic-segmentation", small.segmenter, masked),
    "llava": Kind("image-to-text", speaking.llava, described),
}


def make(folder, name):
    """Write sixteen samples of a kind and a small model; return the model's folder."""
    kind = KINDS[name]
    for number in range(16):
        kind.write(folder / "data" / "validation", kind.classes[number % len(kind.classes)], number)
    return kind.model(folder / "model")


@pytest.mark.parametrize("name", KINDS)
def test_every_kind(tmp_path, name):
    model, task = make(tmp_path, name), KINDS[name].task
    extra = {"max_new_tokens": 2} if task == "image-to-text" else {}
    config, results = hf_tome.tune(
        str(model), str(tmp_path / "data"), budget=0.7, task=task, front=(), out=tmp_path / "tuned", **QUICK, **extra
    )
    assert config.r or config.keep_ratio
    row = next(row for row in results.rows if row["name"] == results.run["tuned"]["name"])
    assert row["gflops"] <= 0.7 * results.rows[0]["gflops"]
    assert ("random pruning" in results.run["tuned"]["rows"]) == (name != "upernet"), "it needs every token"


def test_projected_tokens_are_tuned_by_the_share_of_them_that_is_left(tmp_path):
    model = make(tmp_path, "llava")
    options = {**QUICK, "max_evaluations": 9, "front": (0.7, 0.3), "methods": ["tome", "mame"], "max_new_tokens": 2}
    config, results = hf_tome.tune(
        *(str(model), str(tmp_path / "data")),
        **{"budget": 0.5, "task": "image-to-text", "where": "projected", "by_block": True, **options},
        **{"image_size": "free", "out": tmp_path / "tuned"},
    )
    tuned = results.run["tuned"]
    assert config.where == "projected"
    assert config.ratio == 0.5 or config.keep_ratio == 0.5
    assert [(point["budget"], point["share"]) for point in tuned["front"]] == [(0.7, 0.7), (0.5, 0.5), (0.3, 0.3)]
    assert tuned["unit"] == "image tokens"
    row = next(row for row in results.rows if row["name"] == tuned["name"])
    assert row["tokens"] == pytest.approx(results.rows[0]["tokens"] / 2, abs=1)
    assert "share of the image tokens" in (tmp_path / "tuned" / "front.md").read_text()
    assert any("no picture of the blocks" in note for note in results.run["notes"])
    assert any("the image size is no choice" in note for note in results.run["notes"])


def test_projected_tokens_and_a_largest_drop(tmp_path, capsys):
    model = make(tmp_path, "llava")
    out = tmp_path / "tuned"
    arguments = ["tune", "--task", "image-to-text", "--model", str(model), "--data", str(tmp_path / "data")]
    arguments += ["--where", "projected", "--max-drop", "1000", "--not-sure", "--method", "tome", "--choose", "8"]
    assert run([*arguments, "--max-new-tokens", "2", "--batch-size", "8", "--out", str(out), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["tuned"]["front"]
    assert MergeConfig.from_pretrained(out).where == "projected"

"""integrations/trainer: every recipe trains, resumes, and leaves what loads merged; bad input is refused."""

import functools
import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import small
import torch
import transformers as tf

import hf_tome
from hf_tome import MergeConfig
from hf_tome.evaluation.data.digits import load_digits

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

FOLDER = Path(__file__).resolve().parents[2] / "integrations" / "trainer"
MODULES = ("train", *(path.stem for path in FOLDER.glob("*.py")))
MERGED = {
    "tome-finetune": MergeConfig(r=16),
    "tome-scratch": MergeConfig(r=16),
    "mame-scratch": MergeConfig(method="mame", threshold=0.5, keep_ratio=0.5, layers=[0, 1]),
    "mame-last-block": MergeConfig(method="mame", threshold=0.8),
    "distil": MergeConfig(r=24),
    "videomae-finetune": MergeConfig(r=65),
}


@pytest.fixture(scope="module")
def recipes():
    """The module `train`, whose neighbours have names that others may use too."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        train = importlib.import_module("train")
        digits = sys.modules["data"]
        for name in ("load_digits", "_clips"):  # a module of this fixture alone
            setattr(digits, name, functools.cache(getattr(digits, name)))
        yield train
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models of the digits' classes, and of three others."""
    from hf_tome.demo.digits_scenes import clip_names

    folder = tmp_path_factory.mktemp("models")
    digits = [str(digit) for digit in range(10)]
    return {
        "Image": small.vit(folder / "vit", *digits),
        "Video": small.videomae(folder / "videomae", *clip_names()),
        "other": small.vit(folder / "other"),
    }


@pytest.fixture
def few_clips(recipes, monkeypatch):
    monkeypatch.setattr(sys.modules["data"], "NUM_CLIPS", {"train": 240, "test": 8})


def run(recipes, recipe, out, *options):
    return recipes.main(
        [recipe, "--out", str(out), "--epochs", "2", "--limit", "16", "--batch-size", "8", "--quiet", *options]
    )


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def weights(folder):
    return hf_tome.from_pretrained(folder).state_dict()


def test_every_recipe_is_tried(recipes):
    assert set(recipes.RECIPES) == set(MERGED)


@pytest.mark.usefixtures("few_clips")
@pytest.mark.parametrize("name", MERGED)
def test_a_recipe_trains_resumes_and_loads_merged(name, recipes, models, tmp_path):
    options = ("--model", str(models[recipes.RECIPES[name].kind]))
    result = run(recipes, name, tmp_path / "whole", *options)
    merged = hf_tome.from_pretrained(tmp_path / "whole")
    assert (
        hf_tome.get_config(merged) == MERGED[name] == MergeConfig.from_pretrained(tmp_path / "whole" / "checkpoint-2")
    )
    assert not hf_tome.is_merged(type(merged).from_pretrained(tmp_path / "whole"))
    assert set(result) >= {"accuracy", "accuracy_unmerged", "seconds_per_step"}
    assert ("accuracy_before" in result) == (not name.endswith("scratch"))
    card = (tmp_path / "whole" / "README.md").read_text()
    assert f"| trained | none | {100 * result['accuracy_unmerged']:.1f} |" in card
    assert str(tmp_path) not in card
    assert str(models["Image"].parent) not in card

    # What was cut off after an epoch goes on to the same weights.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    (tmp_path / "cut" / "model.safetensors").unlink()
    resumed = run(recipes, name, tmp_path / "cut", *options, "--resume")
    assert resumed["accuracy"] == result["accuracy"]
    for key, value in weights(tmp_path / "whole" / "checkpoint-4").items():
        torch.testing.assert_close(weights(tmp_path / "cut" / "checkpoint-4")[key], value, atol=0, rtol=0)


def test_the_last_block_alone_is_trained(recipes, models, tmp_path):
    run(recipes, "mame-last-block", tmp_path, "--model", str(models["Image"]), "--learning-rate", "0.01")
    before, after = weights_of(models["Image"]), weights_of(tmp_path)
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed
    assert all("layers.2." in key or "layernorm" in key.rsplit(".", 2)[-2] or "classifier" in key for key in changed)


def weights_of(folder):
    return tf.AutoModelForImageClassification.from_pretrained(folder).state_dict()


def test_what_is_saved_gives_the_accuracy_that_is_said(recipes, models, tmp_path):
    result = run(recipes, "tome-finetune", tmp_path, "--model", str(models["Image"]), "--learning-rate", "1e-2")
    model = hf_tome.from_pretrained(tmp_path).eval()
    processor = tf.AutoImageProcessor.from_pretrained(tmp_path)
    split = sys.modules["data"].open_data("digits", "Image")[1].first(16)
    pixels = torch.stack([sys.modules["data"].reader("Image", processor, model.config)(x) for x in split.contents])
    with torch.no_grad():
        correct = model(pixels).logits.argmax(-1) == torch.tensor(split.labels)
    assert correct.float().mean().item() == pytest.approx(result["accuracy"])


def test_lora_and_a_schedule(recipes, models, tmp_path):
    pytest.importorskip("peft")
    options = ("--model", str(models["Image"]), "--lora", "--unmerged-epochs", "1", "--evaluate-unmerged")
    result = run(recipes, "tome-finetune", tmp_path / "out", *options)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert result["merged"] in ("r=16", "unmerged")  # as the best epoch was trained
    assert hf_tome.get_config(hf_tome.from_pretrained(tmp_path / "out" / "checkpoint-4")) == MergeConfig(r=16)
    assert MergeConfig.from_pretrained(tmp_path / "out" / "checkpoint-2") == MergeConfig()
    with pytest.raises(SystemExit, match="beside pretrained weights"):
        run(recipes, "mame-scratch", tmp_path / "other", "--model", str(models["Image"]), "--lora")


def test_activation_checkpointing_changes_nothing(recipes, models, tmp_path):
    for name, options in {"plain": (), "checkpointed": ("--activation-checkpointing",)}.items():
        run(recipes, "tome-finetune", tmp_path / name, "--model", str(models["Image"]), *options)
    plain, checkpointed = (weights(tmp_path / name / "checkpoint-4") for name in ("plain", "checkpointed"))
    for key, value in plain.items():
        torch.testing.assert_close(checkpointed[key], value, atol=1e-5, rtol=1e-4)


def save_pictures(folder, label, count=4, sides=(8,)):
    folder = folder / str(label)
    folder.mkdir(parents=True)
    for index, sample in enumerate(load_digits("test").select(range(count))):
        side = sides[index % len(sides)]
        sample["image"].resize((side, side)).save(folder / f"{index}.png")


@pytest.fixture
def picture_folder(tmp_path):
    for split in ("train", "validation"):
        for label in ("cat", "dog", "owl"):
            save_pictures(tmp_path / "data" / split, label, sides=(8, 12, 20))
    return tmp_path / "data"


def test_a_folder_with_other_classes_and_several_sizes_gets_a_new_head(recipes, models, picture_folder, tmp_path):
    options = ("--model", str(models["Image"]), "--data", str(picture_folder))
    result = run(recipes, "tome-finetune", tmp_path / "out", *options)
    assert "accuracy_before" not in result
    assert hf_tome.from_pretrained(tmp_path / "out").config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    with pytest.raises(SystemExit, match="nothing to teach"):
        run(recipes, "distil", tmp_path / "distilled", *options)
    assert not (tmp_path / "distilled").exists()


def test_a_processor_that_does_not_resize(recipes, models, picture_folder, tmp_path):
    shutil.copytree(models["Image"], tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_resize": False}))
    with pytest.raises(SystemExit, match=r"in several sizes \(.*do_resize"):
        run(
            recipes,
            "tome-finetune",
            tmp_path / "out",
            "--model",
            str(tmp_path / "model"),
            "--data",
            str(picture_folder),
            "--batch-size",
            "4",
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: shutil.rmtree(data / "validation"), "validation"),
        (lambda data: [shutil.rmtree(data / "train" / label) for label in ("dog", "owl")], r"of one class \(cat\)"),
        (lambda data: shutil.rmtree(data / "train" / "dog"), "classes to evaluate on that are not trained: dog"),
    ],
)
def test_folders_that_cannot_be_trained_on(damage, message, recipes, models, picture_folder, tmp_path):
    damage(picture_folder)
    with pytest.raises(SystemExit, match=message):
        run(recipes, "tome-finetune", tmp_path / "out", "--model", str(models["Image"]), "--data", str(picture_folder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("labels", "message"), [(None, "lack a label column"), ([0, 1, -1, 0], "1 of 4 samples .* have no label")]
)
def test_data_sets_without_labels(labels, message, recipes, models, tmp_path):
    import datasets

    rows = load_digits("test").select(range(4))
    if labels is None:
        rows = rows.remove_columns("label")
    else:
        features = datasets.Features({**rows.features, "label": datasets.ClassLabel(names=["a", "b"])})
        rows = rows.remove_columns("label").add_column("label", labels).cast(features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "data")
    with pytest.raises(SystemExit, match=message):
        run(
            recipes,
            "tome-finetune",
            tmp_path / "out",
            "--model",
            str(models["Image"]),
            "--data",
            str(tmp_path / "data"),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--config", "r=4,layers=7-8"), "names blocks"),
        (("--config", "r=40", "--unmerged-epochs", "1"), "has 64 that may merge"),
        (("--unmerged-epochs", "2"), "training ends at epoch 2"),
    ],
)
def test_merging_that_does_not_fit(options, message, recipes, models, tmp_path):
    with pytest.raises(SystemExit, match=message):
        run(recipes, "tome-finetune", tmp_path / "out", "--model", str(models["Image"]), *options)
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_nothing_is_overwritten(recipes, models, tmp_path):
    options = ("--model", str(models["Image"]))
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match="no run in"):
        run(recipes, "tome-finetune", out, *options, "--resume")
    run(recipes, "tome-finetune", out, *options)
    before = files(out)
    with pytest.raises(SystemExit, match="not empty, and nothing in it is overwritten: go on with --resume"):
        run(recipes, "tome-finetune", out, *options)
    with pytest.raises(
        SystemExit, match=r"other settings: `config` was None and is 'r=8'; `epochs` was 2.0 and is 3.0"
    ):
        run(recipes, "tome-finetune", out, *options, "--resume", "--config", "r=8", "--epochs", "3")
    assert files(out) == before

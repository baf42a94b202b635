"""integrations/trainer: trains with merging on, and what it saves loads merged and gives the same accuracy."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import small
import torch

import hf_tome
from hf_tome.evaluation.data.digits import load_digits

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

RECIPE = Path(__file__).resolve().parents[2] / "integrations" / "trainer" / "finetune.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("finetune", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model of three classes, so that the digits need a new head."""
    return small.vit(tmp_path_factory.mktemp("model"))


def train(recipe, out, *options):
    return recipe.main(["--epochs", "1", "--limit", "16", "--batch-size", "8", "--out", str(out), *options])


def test_what_is_trained_merged_loads_merged(recipe, tmp_path):
    result = train(recipe, tmp_path, "--config", "r=24", "--learning-rate", "1e-3")
    model = hf_tome.from_pretrained(tmp_path).eval()
    assert hf_tome.report(model).towers[0].config["r"] == 24
    before = recipe.AutoModelForImageClassification.from_pretrained(recipe.MODEL_DIR)
    weights = [dict(m.named_parameters())["vit.layers.0.attention.q_proj.weight"] for m in (model, before)]
    assert not torch.equal(*weights)

    processor = recipe.AutoImageProcessor.from_pretrained(tmp_path)
    held_out = load_digits("test").shuffle(seed=0).select(range(16))
    with torch.no_grad():
        logits = model(**processor(list(held_out["image"]), return_tensors="pt")).logits
    found = (logits.argmax(-1) == torch.tensor(held_out["label"])).float().mean().item()
    assert found == pytest.approx(result["accuracy_after"])
    assert result["processor_seconds_per_step"] > 0


def test_unmerged_and_checkpointed_and_from_scratch(recipe, tiny, tmp_path):
    train(recipe, tmp_path / "plain", "--model", str(tiny), "--config", "r=0", "--from-scratch")
    assert not (tmp_path / "plain" / "merge_config.json").exists()
    same = [
        train(recipe, tmp_path / str(index), "--model", str(tiny), "--config", "r=8", *options)["accuracy_after"]
        for index, options in enumerate([(), ("--activation-checkpointing",)])
    ]
    assert same[0] == same[1]
    # Two steps are enough to tell trained weights from others, if checkpointed gradients were wrong.
    states = [hf_tome.from_pretrained(tmp_path / str(index)).state_dict() for index in range(2)]
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], atol=1e-5, rtol=1e-4)


def test_an_image_folder_with_other_classes_gets_a_new_head(recipe, tiny, tmp_path, digit_folder):
    folder = tmp_path / "data"
    shutil.copytree(digit_folder / "test", folder / "test")
    with pytest.raises(SystemExit, match="needs train"):
        train(recipe, tmp_path / "out", "--data", str(folder))
    shutil.copytree(digit_folder / "test", folder / "train")
    options = ("--model", str(tiny), "--data", str(folder), "--config", "method=mame,threshold=0.9")
    train(recipe, tmp_path / "out", *options)
    names = sorted(path.name for path in (digit_folder / "test").iterdir())
    assert list(hf_tome.from_pretrained(tmp_path / "out").config.id2label.values()) == names

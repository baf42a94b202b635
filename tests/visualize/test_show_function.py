"""`hf_tome.show`: a picture from Python, with what the model predicts before and after."""

import pytest
import torch
from small import ast, picture, save, videomae, vit, write_sound
from transformers import AutoModelForImageClassification, ViTModel

import hf_tome
from hf_tome import MergeConfig
from hf_tome.visualize.predictions import predict


def test_models_and_media_by_name_and_as_objects(tmp_path):
    folder = vit(tmp_path / "vit")
    model = AutoModelForImageClassification.from_pretrained(folder)
    picture().save(tmp_path / "photo.png")
    by_name = hf_tome.show(folder, tmp_path / "photo.png", "r=4")
    by_object = hf_tome.show(model, picture(), [MergeConfig(r=4)])
    assert by_name.size == by_object.size
    assert by_name.tobytes() == by_object.tobytes()
    assert not hf_tome.is_merged(model)
    assert hf_tome.show("digits-vit", picture(), ["r=8", "r=16"]).width > by_name.width
    assert hf_tome.show(ast(tmp_path / "ast"), write_sound(tmp_path / "a.wav"), heatmap=True).width
    assert hf_tome.show(videomae(tmp_path / "videomae"), [picture(side=16)] * 8, "r=4").width


def test_predictions_are_those_of_the_merged_model(tmp_path):
    from transformers import AutoImageProcessor

    folder = vit(tmp_path / "vit")
    model, processor = (
        AutoModelForImageClassification.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    unmerged = predict(model, processor, picture(), MergeConfig())
    merged = predict(model, processor, picture(), MergeConfig(r=20))
    with torch.no_grad():
        expected = model(**processor(picture(), return_tensors="pt")).logits.softmax(-1).max()
    assert unmerged.probability == pytest.approx(float(expected))
    assert unmerged.probability != merged.probability
    assert str(unmerged) in (f"{name} {unmerged.probability:.0%}" for name in ("cat", "dog", "tree"))
    save(tmp_path / "backbone", ViTModel(model.config), processor)
    assert predict(ViTModel(model.config), processor, picture(), MergeConfig()) is None
    assert hf_tome.show(tmp_path / "backbone", picture(), "r=4").width


def test_what_cannot_be_shown_is_said(tmp_path):
    folder = vit(tmp_path / "vit")
    with pytest.raises(TypeError, match="`configs` is 3; it takes MergeConfigs"):
        hf_tome.show(folder, picture(), 3)
    model = AutoModelForImageClassification.from_pretrained(folder)
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match="built in memory; pass its processor"):
        hf_tome.show(model, picture())
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises((OSError, ValueError), match="vit"):
        hf_tome.show(folder, picture())

"""Exported models give what PyTorch gives, for a batch of another size than the one that they were exported with."""

import json

import pytest
import torch
import transformers as tf
from zoo import ZOO

from hf_tome import MergeConfig, apply, report
from hf_tome.cli.app import run
from hf_tome.hub.export import difference_in_onnxruntime, export_onnx, export_program

CONFIGS = {"tome": MergeConfig(r=6), "mame": MergeConfig(method="mame", keep_ratio=0.6, layers=[0, 2])}
FAST = ("vit", "deit", "clip-projection", "siglip-classifier", "videomae")
VIT = next(zoo for zoo in ZOO if zoo.name == "vit")
MODELS = [pytest.param(zoo, id=zoo.name) for zoo in ZOO if zoo.name in FAST]
TOWERS = {
    "clip": (tf.CLIPVisionModel, tf.CLIPVisionConfig),
    "siglip": (tf.SiglipVisionModel, tf.SiglipVisionConfig),
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}


def every_config(test):
    return pytest.mark.product(pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)(test))


@every_config
@pytest.mark.parametrize("zoo", MODELS)
def test_exported_program(zoo, config):
    model = apply(zoo.make(), config)
    with torch.no_grad():
        zoo.run(model)
    before = str(report(model))
    program = export_program(model, zoo.inputs(2))
    assert str(report(model)) == before, "of the pass before, not of one without values"
    inputs = zoo.inputs(5)
    with torch.no_grad():
        exported = zoo.run(program.module(), inputs=inputs)
        torch.testing.assert_close(exported, zoo.run(model, inputs=inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("vit", "tome"),
        ("vit", "mame"),
        *(pytest.param(name, method, marks=pytest.mark.slow) for name in FAST[1:] for method in CONFIGS),
    ],
)
def test_onnx(name, method, tmp_path):
    onnx, _ = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    (zoo,) = (zoo for zoo in ZOO if zoo.name == name)
    model = apply(zoo.make(), CONFIGS[method])
    path = export_onnx(model, tmp_path / "model.onnx", zoo.inputs(2))
    graph = onnx.load(path)
    assert {node.domain for node in graph.graph.node} == {""}, "operators outside the standard"
    assert not graph.functions
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 18)]
    assert graph.graph.output[0].name == zoo.output
    for value in (*graph.graph.input, *graph.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    for batch_size in (1, 5):
        assert difference_in_onnxruntime(model, path, zoo.inputs(batch_size)) < 1e-4


@pytest.mark.slow
@every_config
@pytest.mark.parametrize("tower", TOWERS)
def test_towers_with_example_inputs(tower, config, tmp_path):
    pytest.importorskip("onnxruntime")
    cls, config_cls = TOWERS[tower]
    torch.manual_seed(0)
    model = apply(cls(config_cls(**SMALL, image_size=32, patch_size=4)).eval(), config)
    path = export_onnx(model, tmp_path / "model.onnx")
    assert difference_in_onnxruntime(model, path) < 1e-4


@pytest.mark.parametrize("batching", ["pad", "union"])
def test_what_cannot_be_exported_is_refused(batching, tmp_path):
    model = apply(VIT.make(), MergeConfig(method="mame", threshold=0.5, batching=batching))
    with pytest.raises(ValueError, match="keep_ratio"):
        export_onnx(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="keep_ratio"):
        export_program(model)
    with pytest.raises(ValueError, match="training mode"):
        export_program(VIT.make().train())


def test_command(tmp_path, capsys):
    zoo = next(zoo for zoo in ZOO if zoo.name == "vit")
    zoo.make().save_pretrained(tmp_path / "model")
    tf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    out = tmp_path / "new" / "model.pt2"
    arguments = ["export", "--model", str(tmp_path / "model"), "--config", "r=6", "--out", str(out)]
    assert run([*arguments, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    expected = {"file": str(out), "bytes": out.stat().st_size, "config": "r=6", "part": "all", "difference": None}
    assert row == expected
    program = torch.export.load(out)
    assert program.module()(**zoo.inputs(3)).logits.shape == (3, 5)
    assert run(["export", "--model", str(tmp_path / "model"), "--out", "model.tflite"]) == 1
    assert "ends in .onnx or .pt2" in capsys.readouterr().err


@pytest.mark.parametrize("wrap", [lambda tensor: tensor, lambda tensor: (tensor,)], ids=["tensor", "tuple"])
def test_what_people_pass_first_is_taken(wrap):
    model = apply(VIT.make(), MergeConfig(r=4))
    program = export_program(model, wrap(VIT.inputs(2)["pixel_values"]))
    with torch.no_grad():
        assert len(VIT.run(program.module(), inputs=VIT.inputs(3))) == 3


def test_other_inputs_are_named():
    with pytest.raises(TypeError, match="`inputs` is a str; it takes the model's keyword arguments"):
        export_program(VIT.make(), "photo.jpg")
    with pytest.raises(ValueError, match="a batch of 1, which would become a constant"):
        export_program(VIT.make(), VIT.inputs(1))

"""`hf_tome.evaluate`, `sweep` and `benchmark` as in a notebook: objects in, tables out."""

import copy

import datasets
import pytest
import small
import torch
import transformers as tf

import hf_tome
from hf_tome import MergeConfig
from hf_tome.evaluation.data.digits import MODEL_DIR, load_digits

pytestmark = pytest.mark.usefixtures("costs_hardly_measured")


@pytest.fixture(scope="module")
def model():
    return tf.AutoModelForImageClassification.from_pretrained(MODEL_DIR).eval()


@pytest.fixture(scope="module")
def rows():
    return load_digits("test").select(range(8))


@pytest.fixture(scope="module")
def results(model, rows):
    return hf_tome.evaluate(model, rows, [MergeConfig(r=8), "r=16"], batch_size=4)


def test_a_model_and_a_data_set_in_memory(results, model):
    assert [row["name"] for row in results.rows] == ["unmerged", "r=8", "r=16"]
    assert results.rows[0]["top1"] > 80
    assert results.data["num_samples"] == 8
    assert not hf_tome.is_merged(model)
    by_name = hf_tome.evaluate("digits-vit", "digits", MergeConfig(r=8), limit=2)
    assert by_name.run["model"] == "digits-vit"
    assert by_name.data["id"] == "digits"
    assert by_name.data["split"] == "test"


def test_results_are_tables(results, tmp_path):
    frame = results.to_pandas()
    assert list(frame.index) == ["unmerged", "r=8", "r=16"]
    assert frame["tokens"].dtype == float
    assert {"drop", "drop_low", "drop_high", "speedup"} < set(frame.columns)
    assert results.to_markdown().startswith("| config | top-1 % |")
    shown = results._repr_html_()
    assert shown.count("<tr>") == 4
    assert "<td" in shown
    assert "r=16" in str(results)
    figure = results.plot(tmp_path / "plot.png")
    assert len(figure.axes) == 2
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_names_in_a_notebook_table_are_no_html(results):
    renamed = type(results)(results.environment, {**results.run, "model": "<b>x"}, results.data, results.rows)
    assert "<b>" not in renamed._repr_html_()


def test_results_are_kept_and_resumed(model, rows, tmp_path):
    first = hf_tome.evaluate(model, rows, "r=8", out=tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {"results.json", "report.md", "samples.jsonl"}
    again = hf_tome.evaluate(model, rows, "r=8", out=tmp_path / "out")
    assert again.rows[1]["top1"] == first.rows[1]["top1"]
    with pytest.raises(ValueError, match="another run"):
        hf_tome.evaluate(model, rows.select(range(4)), "r=8", out=tmp_path / "out")


def test_a_sweep_has_its_controls(model, rows):
    swept = hf_tome.sweep(model, rows, methods=["tome"], r=[16], batch_size=4)
    assert [row.get("control") for row in swept.rows][:3] == [None, None, "random_prune"]
    assert "control" in swept.to_pandas().columns


def test_a_merged_model_comes_back_merged(model, rows):
    with hf_tome.merged(model, MergeConfig(r=4)):
        found = hf_tome.evaluate(model, rows, "r=8")
        assert hf_tome.get_config(model) == MergeConfig(r=4)
    assert "was merged" in found.run["notes"][0]


def test_recordings_clips_and_paths(tmp_path):
    torch.manual_seed(0)
    sounds = [str(small.write_sound(tmp_path / f"{name}.wav")) for name in ("cat", "thunder")]
    label = datasets.ClassLabel(names=["cat", "thunder"])
    features = datasets.Features({"audio": datasets.Value("string"), "label": label})
    recordings = datasets.Dataset.from_dict({"audio": sounds, "label": [0, 1]}, features=features)
    ast = tf.AutoModelForAudioClassification.from_pretrained(small.ast(tmp_path / "ast")).eval()
    assert hf_tome.evaluate(ast, recordings, "r=4").run["task"] == "audio-classification"
    clips = [str(small.write_clip(tmp_path / f"{name}.mp4")) for name in ("a", "b")]
    features = datasets.Features({"video": datasets.Value("string"), "label": datasets.ClassLabel(names=["yoga"])})
    videos = datasets.Dataset.from_dict({"video": clips, "label": [0, 0]}, features=features)
    videomae = tf.AutoModelForVideoClassification.from_pretrained(small.videomae(tmp_path / "videomae")).eval()
    assert hf_tome.evaluate(videomae, videos, "r=4", clips=2).data["num_samples"] == 2


def test_processors_are_found_or_asked_for(tmp_path, model, rows):
    fresh = tf.ViTForImageClassification(copy.deepcopy(model.config))
    fresh.config._name_or_path = ""
    with pytest.raises(ValueError, match=r"pass an image processor as `processor=`"):
        hf_tome.evaluate(fresh, rows, "r=8")
    with pytest.raises(ValueError, match=r"`processor` is a .*; this task takes an image processor"):
        hf_tome.evaluate(model, rows, "r=8", processor=small.tokenizer())
    processor = tf.AutoImageProcessor.from_pretrained(MODEL_DIR)
    assert hf_tome.evaluate(fresh, rows, "r=8", processor=processor).data["num_samples"] == 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "`model` is a int|is a int"),
        ({"data": [1, 2]}, TypeError, r"`data` is a list; it takes a datasets.Dataset"),
        ({"data": datasets.Dataset.from_dict({"text": ["a"], "label": ["0"]})}, ValueError, "has no column of images"),
        ({"configs": 3}, TypeError, "`configs` is 3"),
        ({"configs": [3]}, TypeError, "3 is no merge config"),
        ({"configs": "q=3"}, ValueError, "unknown"),
        ({"task": "video-classification"}, ValueError, "has no column of videos"),
        ({"device": "cpu"}, ValueError, "in memory on cpu already"),
        ({"data": datasets.DatasetDict(test=load_digits("test")), "split": "train"}, ValueError, "no split 'train'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_does_not_fit_is_said(model, rows, change, error, message):
    given = {"model": model, "data": rows, "configs": "r=8", **change}
    model_, data, configs = given.pop("model"), given.pop("data"), given.pop("configs")
    with pytest.raises(error, match=f"(?i){message}"):
        hf_tome.evaluate(model_, data, configs, **given)


def test_models_without_a_head_say_what_to_load(rows):
    backbone = tf.AutoModel.from_pretrained(MODEL_DIR)
    with pytest.raises(ValueError, match="The task does not follow from a model of class ViTModel"):
        hf_tome.evaluate(backbone, rows, "r=8")
    with pytest.raises(ValueError, match="A ViTModel cannot classify images; load it with AutoModelForImageCl"):
        hf_tome.evaluate(backbone, rows, "r=8", task="image-classification")


def test_questions_in_a_data_set(tmp_path):
    rows = datasets.Dataset.from_list([{"image": small.picture(), "question": "what is it?", "answer": "a cat"}])
    llava = tf.AutoModelForImageTextToText.from_pretrained(small.llava(tmp_path / "llava")).eval()
    with pytest.raises(ValueError, match="The task does not follow from a model of class Llava"):
        hf_tome.evaluate(llava, rows, "r=4")
    found = hf_tome.evaluate(llava, rows, "r=4", task="visual-question-answering", prompt="<image> {question}")
    assert found.data["num_samples"] == 1


def test_benchmark(model):
    found = hf_tome.benchmark(model, None, MergeConfig(r=16), batch_size=1, rounds=2)
    assert found.rows[0]["config"]["r"] == 16
    assert list(found.to_pandas().index) == ["r=16"]
    assert found.to_markdown().startswith("| config | tokens |")
    assert "<td" in found._repr_html_()
    assert "speed-up" in str(found)
    assert len(found.plot().axes) == 1
    inputs = {"pixel_values": torch.zeros(1, 3, 32, 32)}
    several = hf_tome.benchmark("digits-clip", None, ["r=8", "r=16"], batch_size=1, rounds=2)
    assert len(several.rows) == 2
    with pytest.raises(ValueError, match="batch_size"):
        hf_tome.benchmark(model, inputs, "r=8", batch_size=4)

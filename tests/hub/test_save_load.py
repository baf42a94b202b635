"""Folders of merged models: what is written, what loads again, whose code runs, and what stays of the user's files."""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import small
import torch
import transformers as tf
import yaml

from hf_tome import MergeConfig, apply, from_pretrained, pipeline, save_pretrained
from hf_tome.api import targets
from hf_tome.hub import save_load as hub_files
from hf_tome.hub.save_load import saved_class

R8 = MergeConfig(r=8)
IDS = ("org/my-model", "null", "org/yes")
NO_IDS = ("my model: v2", "@x", "#tag", "a\nlicense: mit", "- x", '"q"', "{a: 1}", "ü")


def merged(source=None):
    model = tf.AutoModelForImageClassification.from_pretrained(source) if source else None
    if model is None:
        config = tf.ViTConfig(**small.SMALL, **small.IMAGE, **small.labels("cat", "dog"))
        model = small.larger(tf.ViTForImageClassification(config))
    return apply(model, R8)


def metadata(folder):
    _, head, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head)


# --------------------------------------------------------------------------------------------------------- the card


@pytest.mark.parametrize("name", [*IDS, *NO_IDS])
def test_a_card_names_the_model_on_the_hub_whatever_its_name(tmp_path, name, monkeypatch):
    cached = small.vit(tmp_path / "cache" / f"models--{name.replace('/', '--')}" / "snapshots" / "0")
    (cached.parent.parent / "refs").mkdir()
    (cached.parent.parent / "refs" / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    model = merged()
    model.config._name_or_path = name
    save_pretrained(model, tmp_path)
    head = metadata(tmp_path)
    assert head == {
        "library_name": "hf_tome",
        **({"base_model": name} if name in IDS else {}),
        "tags": ["token-merging", "tome"],
    }


@pytest.mark.parametrize("relative", [True, False])
def test_no_local_path_goes_into_a_card(tmp_path, monkeypatch, relative):
    source = small.vit(tmp_path / "private")
    monkeypatch.chdir(tmp_path)
    model = merged("private" if relative else source)
    shutil.rmtree(source)  # a path of a folder that is gone looks like an id
    save_pretrained(model, tmp_path / "out")
    assert "private" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in metadata(tmp_path / "out")


def test_a_readme_of_the_users_own_is_kept(tmp_path, caplog):
    card = tmp_path / "README.md"
    card.write_text("mine: ü", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "hf_tome"):
        save_pretrained(merged(), tmp_path)
    assert card.read_text(encoding="utf-8") == "mine: ü"
    assert "README.md" in caplog.text
    assert "is kept" in caplog.text


def test_a_card_is_renewed_as_long_as_it_was_not_edited(tmp_path, caplog):
    save_pretrained(merged(), tmp_path)
    first = (tmp_path / "README.md").read_text(encoding="utf-8")
    save_pretrained(apply(merged(), MergeConfig(r=2)), tmp_path)
    second = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert first != second
    assert not caplog.records
    edited = second.replace("No results have been measured", "I measured")
    (tmp_path / "README.md").write_text(edited, encoding="utf-8")
    save_pretrained(merged(), tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == edited


def test_text_files_are_utf8_whatever_the_locale(tmp_path, monkeypatch):
    def write_text(path, text, encoding=None, **options):
        assert encoding == "utf-8", path
        return path.write_bytes(text.encode())

    monkeypatch.setattr("pathlib.Path.write_text", write_text)
    save_pretrained(merged(), tmp_path)


# --------------------------------------------------------------------------------------------------- the processors


def test_the_processor_comes_from_where_the_model_came_from(tmp_path):
    source = small.vit(tmp_path / "source")
    save_pretrained(merged(source), tmp_path / "out")
    pipe = pipeline("image-classification", tmp_path / "out", device="cpu")
    assert targets(pipe)[0].config == R8
    assert pipe(small.picture()) == pipeline("image-classification", source, merge_config=R8)(small.picture())
    loaded = from_pretrained(tmp_path / "out")  # and on it goes
    save_pretrained(loaded, tmp_path / "again")
    assert pipeline("image-classification", tmp_path / "again", device="cpu")(small.picture())


def test_a_processor_that_is_given_beats_all_others(tmp_path):
    source = small.vit(tmp_path / "source")
    given = small.image_processor(side=64)
    save_pretrained(merged(source), tmp_path / "out", processor=given)
    assert tf.AutoImageProcessor.from_pretrained(tmp_path / "out").size["height"] == 64
    save_pretrained(merged(source), tmp_path / "out")  # what is there already is kept
    assert tf.AutoImageProcessor.from_pretrained(tmp_path / "out").size["height"] == 64
    with pytest.raises(TypeError, match=r"`processor` is a dict.*save_pretrained"):
        save_pretrained(merged(source), tmp_path / "other", processor={})
    assert not (tmp_path / "other").exists()


def test_a_source_without_a_processor_says_so(tmp_path, caplog):
    source = tmp_path / "source"
    merged().save_pretrained(source)
    with caplog.at_level(logging.WARNING, "hf_tome"):
        save_pretrained(merged(source), tmp_path / "out")
    assert "`processor=`" in caplog.text
    caplog.clear()
    save_pretrained(merged(), tmp_path / "made")  # a model made of a config comes from nowhere
    assert not caplog.records


# -------------------------------------------------------------------------------------------------- whose code runs


ARCHITECTURES = {
    "function": ["pipeline"],
    "module": ["logging"],
    "other class": ["AutoConfig"],
    "tokenizer": ["PreTrainedTokenizerFast"],
    "base": ["PreTrainedModel"],
    "private": ["__name__"],
    "absent": ["NoSuchModel"],
    "number": [5],
    "text": "ViTModel",
    "none": None,
    "empty": [],
}


@pytest.mark.parametrize("names", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_only_models_are_taken_from_transformers_by_name(names):
    config = tf.ViTConfig(**small.SMALL, **small.IMAGE)
    config.architectures = names
    assert saved_class(config) is tf.AutoModel


def test_the_class_that_a_config_names():
    config = tf.ViTConfig(**small.SMALL, **small.IMAGE)
    config.architectures = ["ViTForImageClassification"]
    assert saved_class(config) is tf.ViTForImageClassification


CODE = """
from transformers import ViTConfig, ViTForImageClassification as Plain


class MyConfig(ViTConfig):
    model_type = "my_model_type"


class ViTForImageClassification(Plain):
    config_class = MyConfig
    is_remote = True
"""


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder of a model with code of its own, and a standard input that nobody may ask."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked on standard input"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = small.vit(tmp_path / "remote")
    (folder / "mine.py").write_text(CODE, encoding="utf-8")
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["model_type"] = "my_model_type"
    values["auto_map"] = {
        "AutoConfig": "mine.MyConfig",
        "AutoModelForImageClassification": "mine.ViTForImageClassification",
    }
    path.write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_remote_code_runs_only_where_the_user_says_so(remote):
    for load in (from_pretrained, lambda source, **options: pipeline("image-classification", source, **options)):
        for options in ({}, {"trust_remote_code": False}):
            with pytest.raises(ValueError, match="trust_remote_code=True"):
                load(remote, merge_config=R8, **options)
    model = from_pretrained(remote, R8, trust_remote_code=True)
    assert model.is_remote
    assert targets(model)[0].config == R8
    R8.save_pretrained(remote)
    assert from_pretrained(remote, trust_remote_code=True).is_remote
    assert pipeline("image-classification", remote, trust_remote_code=True)(small.picture())


def test_the_commands_run_no_remote_code_and_ask_nobody(remote, capsys):
    from hf_tome.cli.app import main

    data = remote.parent / "data" / "test" / "cat"
    data.mkdir(parents=True)
    small.picture().save(data / "1.png")
    for command in (
        ["bench", "--model", str(remote), "--config", "r=1"],
        ["show", str(data / "1.png"), "--model", str(remote), "--out", str(remote.parent / "out.png")],
        ["eval", "--model", str(remote), "--data", str(data.parent.parent), "--config", "r=1"],
    ):
        with pytest.raises(SystemExit) as end:
            main(command)
        assert end.value.code
        assert "trust_remote_code" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- where the config is from


def test_argument_beats_file_beats_key(tmp_path):
    folder = small.vit(tmp_path)
    with pytest.raises(ValueError, match=r"has neither a merge_config.json nor the key 'merge_config'"):
        from_pretrained(folder)
    config = tf.AutoConfig.from_pretrained(folder)
    config.merge_config = MergeConfig(r=2).to_dict()
    config.save_pretrained(folder)
    assert targets(from_pretrained(folder))[0].config.r == 2
    MergeConfig(r=4).save_pretrained(folder)
    assert targets(from_pretrained(folder))[0].config.r == 4
    assert targets(from_pretrained(folder, MergeConfig(r=6)))[0].config.r == 6


@pytest.mark.parametrize(
    "config", [MergeConfig(r=4, layers=[7]), MergeConfig(r=[1, 1, 1, 1, 1, 1])], ids=["layers", "r"]
)
def test_a_merge_config_of_another_model_is_named_with_where_it_is_saved(config, tmp_path):
    folder = small.vit(tmp_path / "model")
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"saved in .*model does not fit its model, a ViTFor.*the model has.*Pass"):
        from_pretrained(folder)
    assert targets(from_pretrained(folder, R8))[0].config == R8


def test_plain_transformers_loads_it_unmerged(tmp_path):
    model = merged()
    save_pretrained(model, tmp_path)
    plain = tf.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert not targets(plain)
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in model.state_dict().items())


class Hub:
    """Stands in for the Hub: notes what is uploaded, as it lies in the folder at that time."""

    def __init__(self, token):
        self.token = token

    def create_repo(self, repo_id, **options):
        CREATED.append((repo_id, self.token, options))
        return SimpleNamespace(repo_id=f"someone/{repo_id}")

    def upload_folder(self, *, folder_path, allow_patterns, **options):
        UPLOADED.append(({name: (folder_path / name).read_bytes() for name in allow_patterns}, options))


CREATED, UPLOADED = [], []


@pytest.mark.parametrize("as_pipeline", [False, True])
def test_one_upload_holds_all_that_was_written(tmp_path, monkeypatch, as_pipeline):
    monkeypatch.setattr(hub_files, "HfApi", Hub)
    CREATED.clear()
    UPLOADED.clear()
    folder = tmp_path / "merged-vit"
    folder.mkdir()
    (folder / "notes.txt").write_text("of the user's own")
    model = merged(small.vit(tmp_path / "source"))
    saved = (
        tf.pipeline("image-classification", model, image_processor=small.image_processor()) if as_pipeline else model
    )
    save_pretrained(saved, folder, push_to_hub=True, token="t", private=True, commit_message="One")
    ((files, options),) = UPLOADED
    assert CREATED == [("merged-vit", "t", {"private": True, "exist_ok": True})]
    assert options == {"repo_id": "someone/merged-vit", "commit_message": "One"}
    expected = {"config.json", "model.safetensors", "merge_config.json", "preprocessor_config.json", "README.md"}
    assert set(files) == expected
    assert json.loads(files["merge_config.json"])["r"] == 8


def test_nothing_is_uploaded_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_files, "HfApi", None)
    save_pretrained(merged(), tmp_path, push_to_hub=False)
    assert (tmp_path / "merge_config.json").exists()

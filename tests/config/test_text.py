"""Configs as one line of text."""

import pytest

from hf_tome import MergeConfig
from hf_tome.config import format_config, parse_config
from hf_tome.config.text import is_unmerged, short_name

CONFIG_TEXTS = (
    "r=8",
    "r=[0,8,8]",
    "r=(16,-1.0)",
    "r=4,layers=0-7",
    "r=4,layers=[2,5]",
    "r=8,proportional_attention=false,metric=x_pre",
    "method=mame,threshold=0.8",
    "method=mame,threshold=-0.5,batching=union,layers=0-3",
    "method=mame,keep_ratio=0.5",
    "method=kmeans,r=8,seed=3",
    "ratio=0.5",
    "method=greedy,layers=0-3,ratio=0.25",
    "r=8,towers=[vision_model]",
    "r=8,towers=[vision_model.encoder,audio_tower]",
    "where=denoiser,ratio=0.5,tile=none,stride=[4,2],steps=[0.5,1.0]",
    "keep_ratio=0.5,where=cache,protect=[0,8],size=fitted",
)


@pytest.mark.parametrize("text", CONFIG_TEXTS)
def test_config_text_round_trip(text):
    assert format_config(parse_config(text)) == text


def test_config_text_from_a_file(tmp_path):
    config = MergeConfig(r=(16, -1.0), layers=range(4))
    path = config.save_pretrained(tmp_path)
    assert parse_config(str(path)) == parse_config(str(tmp_path)) == config


def test_a_path_may_hold_an_equals_sign(tmp_path, monkeypatch):
    config = MergeConfig(r=3)
    path = config.save_pretrained(tmp_path / "runs" / "r=8")
    monkeypatch.chdir(tmp_path)
    assert parse_config("runs/r=8/") == parse_config("runs/r=8/merge_config.json") == parse_config(str(path)) == config
    monkeypatch.chdir(tmp_path / "runs")
    assert parse_config("./r=8") == config
    assert parse_config("r=8") == MergeConfig(r=8), "a name that reads as fields is fields"
    with pytest.raises(ValueError, match="'runs/r=9/' is neither a file nor fields"):
        parse_config("runs/r=9/")


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    MergeConfig(r=3).save_pretrained(tmp_path / "merged")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert parse_config("~/merged").r == 3


def test_a_long_text_is_read_back():
    config = MergeConfig(r=list(range(200)))
    text = format_config(config)
    assert len(text) > 255
    assert parse_config(text) == config


@pytest.mark.parametrize(
    "text",
    [
        "layers=0-999999999",
        "r=[" + "[" * 5000 + "]" * 5000 + "]",
        "r=" + "(" * 100_000,
        "r=" + "9" * 5000,
        "r=(1" + "0" * 400 + ",0.5)",
        "r=\0",
        "\0",
        "x" * 300,
        "x" * 300 + "=1",
    ],
    ids=range(9),
)
def test_hostile_text_is_one_short_error(text):
    with pytest.raises(ValueError, match=r"^Config ") as error:
        parse_config(text)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bogus", "neither a file nor fields"),
        ("r=", "not key=value"),
        ("r=8,", "not key=value"),
        ("r=8,r=9", "twice"),
        ("r=eight", "'eight'"),
        ("rr=8", "Unknown merge config fields"),
        ("method=tomme", "'tomme'"),
        ("threshold=2,method=mame", "threshold"),
    ],
)
def test_bad_config_text_says_what_it_takes(text, message):
    with pytest.raises(ValueError, match=message):
        parse_config(text)


def test_names_and_nothing_to_merge():
    assert short_name("method=mame,threshold=0.8,layers=0-3") == "mame 0.8,layers=0-3"
    assert short_name("r=8") == "r=8"
    assert is_unmerged(MergeConfig(r=[0, 0]))
    assert is_unmerged(MergeConfig(method="mame", layers=[]))
    assert not is_unmerged(MergeConfig(method="mame"))

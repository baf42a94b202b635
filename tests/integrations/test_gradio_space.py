"""What the Gradio page does, without gradio: models, controls, results, and errors in words."""

import importlib.util
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from small import ast, dual, llava, picture, videomae, vit, write_clip, write_sound

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

from hf_tome.api import targets
from hf_tome.demo.digits_scenes import NAMES

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "integrations" / "gradio_space"


def load_file(path: Path):
    spec = importlib.util.spec_from_file_location(f"space_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


merging = load_file(SPACE / "merging.py")
space_models = sys.modules["space_models"]
SAME = next(iter(merging.SCHEDULES))


@pytest.fixture
def photo(tmp_path):
    picture(side=64).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def offer(monkeypatch):
    """Let the page offer a folder among its own models: visitors cannot name one."""

    def offer(folder):
        offered = {**space_models.embedded_models(), str(folder): str(folder)}
        monkeypatch.setattr(space_models, "embedded_models", lambda: offered)
        return str(folder)

    return offer


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(merging, "ROUNDS", 1)


def test_an_image(photo):
    found = merging.merge("digits-vit", photo, merging.BOTH, 16, SAME, 0.8)
    assert list(found.tokens) == list(found.milliseconds) == list(found.top) == ["unmerged", "ToMe", "MaMe"]
    assert found.tokens["unmerged"] == [257] * 9
    assert found.tokens["ToMe"] == [257 - 16 * block for block in range(9)]
    assert found.tokens["MaMe"][-1] < 257
    assert found.gflops["ToMe"] < found.gflops["unmerged"]
    assert all(taken > 0 for taken in found.milliseconds.values())
    assert found.picture.width > 3 * 192  # the input and two methods
    for top in found.top.values():
        assert len(top) == 5
        assert 0 < sum(top.values()) <= 1
    assert not targets(merging.load("digits-vit").model)  # unmerged again
    table = found.table()
    assert [len(row) for row in table] == [len(merging.COLUMNS)] * 3
    assert table[0][1:] == ["257 of 257", "0.17", table[0][3], "1.00x"]


@pytest.mark.parametrize("name", ["digits-clip", "digits-siglip"])
def test_a_model_of_images_and_texts_chooses_among_the_digits(name, tmp_path):
    images = load_file(SPACE / "examples.py").write_examples(tmp_path)["image"]
    for image in (path for path in images if "photograph" in path):
        found = merging.merge(name, image, "ToMe", 8, SAME, 0.8)
        digit = NAMES[int(re.search(r"photograph-(\d)", image)[1])]
        for top in found.top.values():
            assert len(top) == 5
            assert next(iter(top)) == digit
            assert set(top) <= set(NAMES)
            assert all(0 <= probability <= 1 for probability in top.values())


def test_r_zero_changes_no_class(photo):
    found = merging.merge("digits-vit", photo, "ToMe", 0, SAME, 0.8)
    assert found.top["ToMe"] == found.top["unmerged"]


@pytest.mark.parametrize("build", [videomae, ast, dual, llava])
def test_clips_sounds_and_models_without_classes(tmp_path, photo, offer, build):
    folder = offer(build(tmp_path / "model"))
    files = {"video": write_clip(tmp_path / "c.mp4"), "audio": write_sound(tmp_path / "s.wav"), "image": photo}
    kind = merging.load(folder).kind
    found = merging.merge(folder, str(files[kind]), "MaMe", 4, SAME, 0.5)
    assert list(found.tokens) == ["unmerged", "MaMe"]
    assert not targets(merging.load(folder).model)
    assert bool(found.top) == (build in (videomae, ast))


def test_a_digit_is_drawn_unmerged_and_merged():
    pytest.importorskip("diffusers")
    from hf_tome import is_merged

    denoising = load_file(SPACE / "denoising.py")
    (half, places) = (denoising.draw(3, 0.5, place, 7) for place in ("around self-attention", "around whole blocks"))
    assert half.unmerged.size == half.merged.size == (256, 256)
    assert half.unmerged.tobytes() == places.unmerged.tobytes() != half.merged.tobytes()
    assert [len(row) for row in half.rows] == [len(denoising.COLUMNS)] * 2
    assert [row[1] for row in half.rows] == ["256", "128"]
    assert float(half.rows[0][2]) > float(half.rows[1][2]) > float(places.rows[1][2])
    assert float(half.rows[1][3]) > float(places.rows[1][3]) > 10  # decibels
    assert half.rows[0][5] == "3"
    assert not is_merged(denoising.load())
    assert denoising.draw(3, 0.0, "around self-attention", 7).rows[1][3] == "100.0"
    around = next(iter(denoising.PLACES))
    wrong = {
        (3, 0.5, "nowhere", 0): "Unknown place",
        (11, 0.5, around, 0): "0 to 9",
        (3, 0.9, around, 0): "at most 0.75",
    }
    for arguments, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            denoising.draw(*arguments)


def test_controls_become_configs():
    both = merging.configs(merging.BOTH, 8, SAME, 0.7)
    assert (both["ToMe"].r, both["MaMe"].threshold) == (8, 0.7)
    falling = next(name for name, inflection in merging.SCHEDULES.items() if inflection < 0)
    (tome,) = merging.configs("ToMe", 8.0, falling, 0.7).values()
    assert tome.r == (8, -1.0)
    assert list(merging.configs("MaMe", 8, SAME, 0.7)) == ["MaMe"]


def test_the_range_of_r_follows_the_model(tmp_path, offer):
    digits, clips = merging.load("digits-vit"), merging.load(offer(videomae(tmp_path)))
    assert (digits.usual_r, digits.largest_r) == (16, 49)  # 257 tokens, 8 blocks
    assert (clips.kind, clips.tokens, clips.blocks) == ("video", 64, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits-vit", None), "Drop an image, a clip or a sound first"),
        (("", "{photo}"), "Pick a model, or type a Hub id"),
        (
            ("./absent", "{photo}"),
            "'./absent' is neither a model of this page nor one that can be fetched from the Hub",
        ),
        (("digits-vit", "{broken}"), "Cannot read broken.png as an image: cannot identify image file"),
        (("digits-vit", "{photo}", "MaMo"), "Unknown method or schedule: 'MaMo'"),
        (("digits-vit", "{photo}", "ToMe", -1), "it takes an integer of at least 0"),
        (("{bert}", "{photo}"), "BertModel"),
    ],
)
def test_errors_are_words_without_the_servers_folders(tmp_path, photo, offer, arguments, message):
    import transformers as tf

    (tmp_path / "broken.png").write_bytes(b"not an image")
    if "{bert}" in arguments:
        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
        tf.BertModel(tf.BertConfig(**small)).save_pretrained(tmp_path / "bert")
        offer(tmp_path / "bert")
    files = {"photo": photo, "broken": tmp_path / "broken.png", "bert": tmp_path / "bert"}
    defaults = ["digits-vit", photo, "ToMe", 8, SAME, 0.8]
    given = [value.format(**files) if isinstance(value, str) else value for value in arguments]
    with pytest.raises((ValueError, OSError)) as caught:
        merging.merge(*given, *defaults[len(given) :])
    words = merging.in_words(caught.value)
    assert message in words
    assert "\n" not in words
    assert "{bert}" in arguments or str(tmp_path) not in words


def test_an_unexpected_error_names_its_kind():
    assert merging.in_words(RuntimeError("the sky\nfell")) == "RuntimeError: the sky fell"
    assert merging.in_words(ValueError("r is -1")) == "r is -1"


def test_examples_can_be_read(tmp_path):
    from PIL import Image

    from hf_tome.media.audio import read_audio
    from hf_tome.media.video import read_frames

    written = load_file(SPACE / "examples.py").write_examples(tmp_path)
    assert {kind: len(paths) for kind, paths in written.items()} == {"image": 10, "video": 3, "audio": 1}
    for path in written["video"]:
        frames = read_frames(path, 16).astype(int)
        assert frames.shape == (16, 224, 224, 3)
        assert np.abs(frames[0] - frames[-1]).mean() > 5  # the digit has moved
    (path,) = written["audio"]
    assert len(read_audio(Path(path), 16_000)) == 4 * 16_000
    for path in written["image"]:
        with Image.open(path) as opened:
            assert min(opened.size) >= 128
            if Path(path).stem in ("china", "flower"):
                assert opened.size == (640, 427)
            assert opened.convert("L").getextrema()[0] < opened.convert("L").getextrema()[1]


def test_the_space_says_what_hugging_face_asks_for():
    import yaml

    header = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    assert (header["sdk"], header["app_file"], header["license"]) == ("gradio", "app.py", "apache-2.0")
    assert re.fullmatch(r"6\.\d+\.\d+", header["sdk_version"])
    assert len(header["short_description"]) <= 60  # the Hub refuses longer ones


def test_requirements_are_those_of_the_package():
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {
        *project["dependencies"],
        *project["optional-dependencies"]["eval"],
        *project["optional-dependencies"]["video"],
        *project["optional-dependencies"]["diffusion"],
    }
    wanted = {line for line in (SPACE / "requirements.txt").read_text().splitlines() if not line.startswith("-")}
    assert set(project["dependencies"]) <= wanted <= known


def test_the_assembled_space_runs_on_its_own_package(tmp_path):
    """It holds all that `merging.py` imports, without the package that is installed here."""
    space = load_file(ROOT / "scripts" / "make_space.py").make_space(tmp_path / "space")
    code = "import merging, hf_tome; print(hf_tome.__file__); print(merging.load('digits-vit').tokens)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=space,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    place, tokens = done.stdout.split()
    assert Path(place).parent == space / "hf_tome"
    assert tokens == "257"
    assert sum(file.stat().st_size for file in space.rglob("*")) < 10_000_000
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="something else"):
        load_file(ROOT / "scripts" / "make_space.py").make_space(tmp_path / "else")


# What strangers may not do


class Hub:
    """A Hub that holds one model, and notes what is fetched."""

    def __init__(self, sizes):
        self.sizes, self.fetched = sizes, []

    def model_info(self, name, **options):
        if name != "org/model":
            raise OSError(f"404: {name}")
        files = [types.SimpleNamespace(rfilename=file, size=size) for file, size in self.sizes.items()]
        return types.SimpleNamespace(sha="0" * 40, siblings=files)

    def fetch(self, folder):
        def snapshot_download(name, *, revision, allow_patterns, token):
            self.fetched = sorted(allow_patterns)
            return str(folder)

        return snapshot_download


@pytest.fixture
def hub(monkeypatch, tmp_path):
    sizes = {"config.json": 1000, "model.safetensors": 10**6, "pytorch_model.bin": 10**10, "x.py": 9, "a/b.json": 9}
    hub = Hub(sizes)
    monkeypatch.setattr(space_models, "HfApi", lambda: hub)
    monkeypatch.setattr(space_models, "snapshot_download", hub.fetch(tmp_path / "snapshot"))
    return hub


def test_models_of_the_hub_are_fetched_without_code_and_pickles(hub, tmp_path):
    assert space_models.model_folder("org/model") == str(tmp_path / "snapshot")
    assert hub.fetched == ["config.json", "model.safetensors"]


def test_large_models_are_not_fetched(hub):
    hub.sizes["model-2.safetensors"] = 3 * 10**9
    with pytest.raises(ValueError, match=r"org/model has 3001001000 bytes .*at most 2000000000\.$"):
        space_models.model_folder("org/model")
    assert not hub.fetched


@pytest.mark.parametrize(
    "name", ["{folder}", "{absent}", "models/vit", "models/absent", "..", "~", "a/b/c", "org/absent"]
)
def test_folders_of_the_server_are_not_told_from_missing_ones(hub, tmp_path, monkeypatch, name):
    vit(tmp_path / "models" / "vit")
    monkeypatch.chdir(tmp_path)
    name = name.format(folder=tmp_path / "models" / "vit", absent=tmp_path / "absent")
    with pytest.raises(ValueError, match="neither a model of this page") as refused:
        merging.load(name)
    assert merging.in_words(refused.value) == (
        f"{name!r} is neither a model of this page nor one that can be fetched from the Hub; pick a model, or type a "
        "Hub id such as facebook/deit-tiny-patch16-224."
    )
    assert not hub.fetched


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.m3u8", b"#EXTM3U\n#EXTINF:5,\nphoto.png\n", "cannot identify image file"),
        ("drawing.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify image file"),
        ("large.png", None, "9000 x 9000 pixels, above the limit image_pixels=25000000"),
    ],
)
def test_hostile_uploads_are_refused_in_one_sentence(tmp_path, name, content, message):
    from PIL import Image

    if content is None:
        Image.new("1", (9000, 9000)).save(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        merging.merge("digits-vit", str(tmp_path / name), "ToMe", 8, SAME, 0.8)
    assert str(tmp_path) not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_uploads_of_visitors_are_smaller():
    assert merging.MEDIA_LIMITS.file_bytes == 100_000_000
    assert merging.MEDIA_LIMITS.image_pixels == 25_000_000

"""`hf-tome show` on images, clips and sounds: what it writes, and what it says when it cannot."""

import numpy as np
import pytest
from small import ast, picture, videomae, vit, write_clip, write_sound

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
pytest.importorskip("av")

from hf_tome.cli.app import run  # noqa: E402
from hf_tome.media.image import read_image  # noqa: E402


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Let a row stay in one line, however long the paths of temporary folders are."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model of each kind, and something for it to look at."""
    made = tmp_path_factory.mktemp("show")
    for build in (vit, videomae, ast):
        build(made / build.__name__)
    picture().save(made / "photo.png")
    write_clip(made / "clip.mp4")
    write_sound(made / "sound.wav")
    (made / "broken.png").write_bytes(b"not an image")
    return made


def show(folder, out, source="photo.png", model="vit", *arguments, configs=("r=4",)):
    flags = [flag for config in configs for flag in ("--config", config)]
    words = ["show", folder / source, "--model", folder / model, "--out", out, *flags, *arguments]
    return run([str(word) for word in words])


def size(path) -> tuple[int, int]:
    with Image.open(path) as opened:
        return opened.size


def test_several_configs_are_columns(folder, tmp_path):
    configs = ["r=4", "r=8", "method=mame,threshold=0.8"]
    for count in (1, 3):
        assert show(folder, tmp_path / f"{count}.png", configs=configs[:count]) == 0
    one, three = size(tmp_path / "1.png"), size(tmp_path / "3.png")
    assert one[1] == three[1]
    assert three[0] - 6 == 2 * (one[0] - 6)  # the input and 1 or 3 pictures, each with its gap


def test_heat_maps_are_drawn(folder, tmp_path, capsys):
    for flags in ((), ("--heatmap",)):
        assert show(folder, tmp_path / f"{len(flags)}.png", "photo.png", "vit", *flags, configs=["r=8"]) == 0
    tokens = {line.split()[4] for line in capsys.readouterr().out.splitlines()}
    assert tokens == {"tokens", "40"}
    assert size(tmp_path / "1.png")[0] > size(tmp_path / "0.png")[0]  # a bar of the colours
    heat = np.asarray(Image.open(tmp_path / "1.png"))
    for colour in ((68, 1, 84), (253, 231, 37)):  # of the bar: a lone patch, and the largest token
        assert (np.abs(heat.astype(int) - colour) <= 1).all(axis=-1).any()
    assert (
        show(folder, tmp_path / "pruned.png", "photo.png", "vit", "--heatmap", configs=["method=random_prune,r=8"])
        == 0
    )
    assert show(folder, tmp_path / "sound.gif", "sound.wav", "ast", "--heatmap") == 0


def test_each_config_is_drawn_and_not_the_last_for_all(folder, tmp_path):
    show(folder, tmp_path / "a.png", configs=["r=0", "r=20"])
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    column = (pixels.shape[1] - 6) // 3
    assert (pixels[20:, column : 2 * column] != pixels[20:, 2 * column : 3 * column]).any()


@pytest.mark.parametrize(
    ("source", "model", "suffix", "pictures"),
    [
        ("photo.png", "vit", ".gif", 3),  # a picture a block
        ("clip.mp4", "videomae", ".gif", 8),  # a picture a frame
        ("clip.mp4", "videomae", ".mp4", 8),
        ("sound.wav", "ast", ".gif", 3),
    ],
)
def test_animations(folder, tmp_path, capsys, source, model, suffix, pictures):
    import av

    out = tmp_path / f"new/moving{suffix}"
    assert show(folder, out, source, model, configs=["r=4", "method=mame"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["file", str(out), str(out)]
    with av.open(str(out)) as container:
        assert len(list(container.decode(video=0))) == pictures


@pytest.mark.parametrize(
    ("source", "model", "flags"),
    [
        ("clip.mp4", "videomae", ()),
        ("clip.mp4", "videomae", ("--all-blocks",)),
        ("clip.mp4", "videomae", ("--follow", "none")),
        ("clip.mp4", "videomae", ("--follow", "3,3,1")),
        ("sound.wav", "ast", ()),
        ("sound.wav", "ast", ("--all-blocks",)),
    ],
)
def test_sheets_of_clips_and_sounds(folder, tmp_path, source, model, flags):
    assert show(folder, tmp_path / "a.png", source, model, *flags) == 0
    width, height = size(tmp_path / "a.png")
    assert width > 192
    if source == "clip.mp4":
        rows = 1 + (3 if "--all-blocks" in flags else 1) + ("none" not in flags)
        assert height == pytest.approx(rows * 212, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.bmp",), "ends in .png, .jpg"),
        (("a",), "ends in .png, .jpg"),
        (("a.png", "broken.png"), "broken.png as an image: cannot identify"),
        (("a.png", "clip.mp4"), "This model takes images; clips need one such as VideoMAE"),
        (("a.png", "sound.wav", "videomae"), "it has no video stream. This model takes clips"),
        (("a.png", "clip.mp4", "ast"), "it has no sound. This model takes recordings"),
        (("a.png", "broken.png", "videomae"), "Cannot read broken.png"),
        (("a.png", "clip.mp4", "videomae", "--follow", "16,0"), "the model sees 8 frames of 16 x 16 pixels"),
        (("a.png", "clip.mp4", "videomae", "--follow", "here"), "takes auto, none, X,Y or X,Y,FRAME"),
        (("a.png", "clip.mp4", "videomae", "--follow", "1"), "takes auto, none, X,Y or X,Y,FRAME"),
        (("a.png", "photo.png", "vit", "--follow", "3,3"), "--follow is for video models, and this one takes images"),
        (("a.png", "clip.mp4", "videomae", "--heatmap"), "--heatmap is for image and audio models"),
        (("a.gif", "photo.png", "vit", "--all-blocks"), "--all-blocks is for pictures"),
    ],
)
def test_errors_are_one_line(folder, tmp_path, capsys, arguments, message):
    out, *rest = arguments
    assert show(folder, tmp_path / out, *rest) != 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / out).exists()


def test_a_name_that_cannot_be_written_is_refused_before_the_model_loads(folder, tmp_path, capsys):
    assert show(folder, tmp_path / "a.bmp", "photo.png", "no-such-model") == 1
    assert "ends in .png" in capsys.readouterr().err


def test_a_photograph_is_turned_as_its_camera_noted(tmp_path):
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    image.save(tmp_path / "phone.jpg", exif=exif)
    assert read_image(tmp_path / "phone.jpg").size == (20, 40)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (2000, 7)])
def test_odd_sizes_are_drawn(folder, tmp_path, size):
    Image.new("L", size, 100).save(tmp_path / "odd.png")
    assert show(folder, tmp_path / "a.jpg", tmp_path / "odd.png") == 0


def test_a_photograph_as_the_model_crops_it(data, tmp_path):
    """The first picture of the sheet is the middle of the photograph at 256 pixels, which is what DeiT sees."""
    source = next((data / "imagenet_sample" / "validation").rglob("*.jpg"))
    out = tmp_path / "a.png"
    assert run(["show", str(source), "--model", str(data / "deit-tiny-patch16-224"), "--out", str(out)]) == 0
    with Image.open(out) as sheet, Image.open(source) as photo:
        photo = photo.convert("RGB")
        ratio = 256 / min(photo.size)
        photo = photo.resize((round(photo.width * ratio), round(photo.height * ratio)), Image.Resampling.BICUBIC)
        left, top = (photo.width - 224) // 2, (photo.height - 224) // 2
        expected = np.asarray(photo.crop((left, top, left + 224, top + 224)), dtype=float)
        shown = sheet.crop((6, sheet.height - 454, 454, sheet.height - 6)).resize((224, 224), Image.Resampling.BOX)
        shown = np.asarray(shown, dtype=float)  # drawn at twice the size
    # A pixel's shift between ways of rounding the crop; a wrong crop differs by 50 on average.
    assert np.abs(shown - expected).mean() < 8


def test_media_limits(folder, tmp_path, capsys):
    show = ["show", str(folder / "photo.png"), "--model", str(folder / "vit"), "--out", str(tmp_path / "a.png")]
    assert run([*show, "--media-limits", "image_pixels=100"]) != 0
    error = capsys.readouterr().err
    assert "photo.png as an image: it has 48 x 48 pixels, above the limit image_pixels=100." in error
    assert error.count("\n") == 1
    assert run([*show, "--media-limits", "image_pixel=100"]) != 0
    assert "no media limit 'image_pixel'" in capsys.readouterr().err
    assert run([*show, "--media-limits", "image_pixels=2304"]) == 0

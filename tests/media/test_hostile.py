"""Hostile files through the pipelines and the command line: each is refused in one sentence, in bounded time."""

import base64
import gzip
import io
import time

import numpy as np
import pytest
import small
from PIL import Image

pytest.importorskip("av")

from hf_tome import MergeConfig
from hf_tome.cli.app import run
from hf_tome.pipelines import pipeline

SECONDS = 5
"""For one file; most take milliseconds."""
TASKS = {
    "image-classification": small.vit,
    "image-feature-extraction": small.vit,
    "video-classification": small.videomae,
    "audio-classification": small.ast,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {task: build(folder / task) for task, build in TASKS.items()}


@pytest.fixture(scope="module")
def pipes(models):
    config = MergeConfig(r=8)
    return {task: pipeline(task, folder, merge_config=config, device="cpu") for task, folder in models.items()}


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Files of wrong types, cut, renamed, playlists and bombs, by name."""
    folder = tmp_path_factory.mktemp("hostile")
    photo = png(small.picture())
    clip = small.write_clip(folder / "source.mp4").read_bytes()
    sound = small.write_sound(folder / "source.wav").read_bytes()
    contents = {
        "empty": b"",
        "zeros": bytes(10_000),
        "text": b"hello " * 1000,
        "json": b"[" * 10_000,
        "gzip": gzip.compress(bytes(10**7)),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/hostname"/></svg>',
        "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsource.mp4\n#EXT-X-ENDLIST\n",
        "concat": b"ffconcat version 1.0\nfile source.mp4\n",
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "cut photo": photo[: len(photo) // 2],
        "cut clip": clip[:100],
        "cut sound": sound[:20],
        "bomb": png(Image.new("1", (9000, 9000))),
        "thin": png(Image.new("1", (30_000, 1))),
    }
    random = np.random.default_rng(0)
    contents |= {f"noise {length}": random.bytes(length) for length in (1, 10, 1000, 100_000)}
    magic = (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"GIF89a",
        b"II*\0",
        b"RIFF\0\0\0\0WEBP",
        b"\0\0\0\x18ftypmp42",
        b"\x1aE\xdf\xa3",
    )
    contents |= {f"noise as {start!r}": start + random.bytes(2000) for start in magic}
    for position, (name, content) in enumerate(contents.items()):
        suffix = (".png", ".jpg", ".mp4", ".wav")[position % 4]
        (folder / f"{name.split()[0]}-{position}{suffix}").write_bytes(content)
    (folder / "source.mp4").unlink()
    (folder / "source.wav").unlink()
    return sorted(folder.iterdir())


def refusal(call):
    """Return what is raised, which must be for the reader and come in time."""
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"^Cannot [^\n]*\.$") as refused:
        call()
    assert time.monotonic() - begun < SECONDS
    return str(refused.value)


@pytest.mark.parametrize("task", TASKS)
def test_pipelines_refuse_in_one_sentence(pipes, hostile, task):
    for file in hostile:
        assert str(file.parent) not in refusal(lambda: pipes[task](str(file)))  # noqa: B023 (called at once)


@pytest.mark.parametrize("task", ["image-classification", "video-classification"])
@pytest.mark.parametrize(
    "name", ["tcp://127.0.0.1:9/a", "file:///etc/hostname", "concat:a.mp4|b.mp4", "/dev/zero", ""]
)
def test_names_that_are_no_files_are_refused(pipes, task, name):
    refusal(lambda: pipes[task](name))


def test_images_as_text_have_the_same_limits(pipes):
    pipe = pipes["image-classification"]
    photo = base64.b64encode(png(small.picture())).decode()
    assert pipe(photo) == pipe(f"data:image/png;base64,{photo}") == pipe(small.picture())
    bomb = base64.b64encode(png(Image.new("1", (9000, 9000)))).decode()
    assert "9000 x 9000 pixels, above the limit" in refusal(lambda: pipe(bomb))


def test_the_command_line_refuses_in_one_line(models, hostile, tmp_path, capsys):
    for task in ("image-classification", "video-classification", "audio-classification"):
        for file in hostile[::3]:
            command = ["show", str(file), "--model", str(models[task]), "--out", str(tmp_path / "a.png")]
            begun = time.monotonic()
            assert run(command) != 0
            assert time.monotonic() - begun < 2 * SECONDS
            error = capsys.readouterr().err
            assert error.count("\n") == 1
            assert "Cannot read" in error
    assert not (tmp_path / "a.png").exists()

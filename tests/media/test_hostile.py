"""Hostile files through the pipelines and the command line: each is read or refused in one sentence, in bounded time.

Nothing is opened but the file that was given, and no address is asked (`support/watch.py`).
"""

import base64
import time

import pytest
import small
from hostile import RECORDS, encoded, hostile_files, mutants, valid_files
from PIL import Image
from watch import only, watching

pytest.importorskip("av")

from hf_tome import MergeConfig
from hf_tome.cli.app import run
from hf_tome.media.limits import MediaLimits
from hf_tome.pipelines import pipeline

PROCESSOR_SECONDS = 5
"""Of this thread, for one file; most take milliseconds."""
SECONDS = 30
"""On the clock, which runs on while other work has the processor: ten times the limit on reading."""
LIMITS = MediaLimits(decoding_seconds=3)
TASKS = {
    "image-classification": small.vit,
    "image-feature-extraction": small.vit,
    "video-classification": small.videomae,
    "audio-classification": small.ast,
}
few_and_many = pytest.mark.parametrize("hostile", [100, pytest.param(1000, marks=pytest.mark.slow)], indirect=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {task: build(folder / task) for task, build in TASKS.items()}


@pytest.fixture(scope="module")
def pipes(models):
    config = MergeConfig(r=8)
    return {
        task: pipeline(task, folder, merge_config=config, device="cpu", media_limits=LIMITS)
        for task, folder in models.items()
    }


@pytest.fixture(scope="module")
def hostile(request, tmp_path_factory):
    """Hostile files, and what watches their folder."""
    folder = tmp_path_factory.mktemp("hostile")
    bait = small.write_clip(folder / "bait.mp4")
    with watching(folder, bait) as watch:
        yield hostile_files(folder, request.param, bait, watch.port), watch


def refusal(call):
    """Return the sentence of the error, which must be for the reader and come in time, or `None` for a result."""
    begun, processor = time.monotonic(), time.thread_time()
    try:
        call()
    except ValueError as error:
        sentence = str(error)
        assert sentence.startswith("Cannot ")
        assert sentence.endswith(".")
        assert "\n" not in sentence
    else:
        sentence = None
    assert time.thread_time() - processor < PROCESSOR_SECONDS
    assert time.monotonic() - begun < SECONDS
    return sentence


@few_and_many
@pytest.mark.parametrize("task", ["image-classification", "video-classification", "audio-classification"])
def test_pipelines_read_or_refuse_in_one_sentence(pipes, hostile, task):
    files, watch = hostile
    refused = 0
    for file in files:
        with only(watch, file):
            sentence = refusal(lambda: pipes[task](str(file)))  # noqa: B023 (called at once)
        assert str(file.parent) not in (sentence or "")
        refused += sentence is not None
    assert refused > len(files) / 2


@pytest.mark.parametrize("task", ["image-classification", "video-classification"])
@pytest.mark.parametrize(
    "name", ["tcp://127.0.0.1:9/a", "file:///etc/hostname", "concat:a.mp4|b.mp4", "/dev/zero", ""]
)
def test_names_that_are_no_files_are_refused(pipes, task, name):
    assert refusal(lambda: pipes[task](name))


def test_images_as_text_have_the_same_limits(pipes):
    pipe = pipes["image-classification"]
    photo = base64.b64encode(encoded(small.picture())).decode()
    assert pipe(photo) == pipe(f"data:image/png;base64,{photo}") == pipe(small.picture())
    bomb = base64.b64encode(encoded(Image.new("1", (9000, 9000)))).decode()
    assert "9000 x 9000 pixels, above the limit" in refusal(lambda: pipe(bomb))


def error_line(command, capsys):
    """Run a command in time; return its one line of error, or nothing where it succeeds."""
    begun = time.monotonic()
    status = run([str(part) for part in command])
    assert time.monotonic() - begun < SECONDS
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "bug" not in error
    if status:
        assert error.splitlines()[-1].startswith("error: ")
    return error.splitlines()[-1] if status else ""


@few_and_many
def test_the_command_line_refuses_in_one_line(models, hostile, tmp_path, capsys):
    files, watch = hostile
    tasks = ("image-classification", "video-classification", "audio-classification")
    for number, file in enumerate(files[::6]):
        out = tmp_path / f"{number}.png"
        command = ["show", file, "--model", models[tasks[number % 3]], "--out", out]
        with only(watch, file):
            error = error_line(command, capsys)
        assert out.exists() != bool(error)


@pytest.mark.parametrize("count", [12, pytest.param(120, marks=pytest.mark.slow)])
def test_hostile_data_sets_are_read_or_refused_in_one_line(models, tmp_path, capsys, count):
    (tmp_path / "sources").mkdir()
    sources = valid_files(tmp_path / "sources")
    records = {suffix: sources[suffix] for suffix in RECORDS}
    bait = small.write_clip(tmp_path / "bait.mp4")
    with watching(tmp_path / "outside", bait) as watch:
        records[".csv"] += f"{bait},cat\nhttp://127.0.0.1:{watch.port}/a.png,dog\n../bait.mp4,dog\n".encode()
        for name, content in mutants(records, count, seed=1):
            folder = tmp_path / name
            folder.mkdir()
            for photo in ("a.png", "b.png"):
                (folder / photo).write_bytes(sources[".png"])
            stem = "metadata" if name.endswith((".csv", ".jsonl")) else "validation-0"
            (folder / f"{stem}{name[name.rindex('.') :]}").write_bytes(content)
            command = ["eval", "--model", models["image-classification"], "--data", folder, "--config", "r=2"]
            with only(watch):
                error_line([*command, "--device", "cpu", "--out", tmp_path / "out" / name], capsys)

"""WebDataset shards: the same samples and labels, wherever the label is written, streamed or not."""

import io
import json

import numpy as np
import pytest
import small
from PIL import Image

from hf_tome import MergeConfig
from hf_tome.evaluation.data.samples import Skipped
from hf_tome.evaluation.data.splits import DataError
from hf_tome.evaluation.options import JobOptions
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.tasks.registry import build_job

NAMES = ("cat", "dog", "tree")
ORDER = (2, 0, 1, 1, 2, 0)  # the class of each sample

LABELS = {
    "numbers, named by a CSV": (lambda name, number: ("{key}", {"cls": str(number)}), "classes.csv"),
    "numbers, named by a list": (lambda name, number: ("{key}", {"cls": str(number)}), "classnames.txt"),
    "text": (lambda name, number: ("{key}", {"label.txt": name}), None),
    "names in JSON": (lambda name, number: ("{key}", {"json": json.dumps({"label": name, "width": 1})}), None),
    "folders": (lambda name, number: (f"{name}/{{key}}", {}), None),
}
"""Where a label is: (name, number) -> the key's pattern and further members of the sample, and the labels file."""

FILES = {
    # The data's numbers are in another order than the model's, which must not matter.
    "classes.csv": "index,label,name\n0,t,tree\n1,c,cat\n2,d,dog\n",
    "classnames.txt": "tree\ncat\ndog\n",
    None: "",
}
NUMBERS = {"tree": 0, "cat": 1, "dog": 2}


def picture():
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(folder, member, content, where):
    describe, file = LABELS[where]
    samples = []
    for number, index in enumerate(ORDER):
        key, members = describe(NAMES[index], NUMBERS[NAMES[index]])
        samples.append((key.format(key=f"{number:04}"), {member: content, **members}))
    small.write_shard(folder / "validation-00000.tar", samples[:4])
    small.write_shard(folder / "validation-00001.tar", samples[4:])
    if file:
        (folder / file).write_text(FILES[file])
    return folder


@pytest.mark.parametrize(
    ("where", "streaming"),
    # A stream does not tell which strings will come; it needs a labels file, as the last test says.
    [*((where, False) for where in LABELS), *((where, True) for where in LABELS if LABELS[where][1])],
)
def test_images(tmp_path, where, streaming):
    folder = write_shards(tmp_path / "shards", "png", picture(), where)
    model = small.vit(tmp_path / "model", *NAMES)
    options = JobOptions(str(model), str(folder), streaming=streaming)
    job = build_job("image-classification", options)
    assert job.data.split == "validation"
    assert [sample.label for sample in job.data] == list(ORDER)
    results = evaluate(job, [MergeConfig(r=8)], batch_size=4)
    assert results.data["num_samples"] == len(ORDER)
    assert [row["tokens"] for row in results.rows] == [65, 41]


def test_clips(tmp_path):
    clip = small.write_clip(tmp_path / "clip.mp4", 12).read_bytes()
    folder = write_shards(tmp_path / "shards", "mp4", clip, "text")
    model = small.videomae(tmp_path / "model", *NAMES)
    job = build_job("video-classification", JobOptions(str(model), str(folder)))
    assert [sample.label for sample in job.data] == list(ORDER)


def test_an_unreadable_member_is_skipped(tmp_path):
    samples = [("cat/0", {"png": picture()}), ("dog/1", {"png": b"no picture"})]
    small.write_shard(tmp_path / "shards" / "validation" / "0.tar", samples)
    job = build_job("image-classification", JobOptions(str(small.vit(tmp_path / "m")), str(tmp_path / "shards")))
    assert [sample.label for sample in job.data] == [0]
    assert [found.sample for found in job.data.read() if isinstance(found, Skipped)] == ["dog/1.png"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([("0", {"png": b"x", "cls": "0"}), ("1", {"cls": "1"})], "cannot be read as WebDataset shards"),
        ([("0", {"png": picture(), "cls": "0"})], "int64 without names.*classnames.txt"),
    ],
)
def test_what_is_wrong_with_shards_is_said(tmp_path, samples, message):
    small.write_shard(tmp_path / "shards" / "validation.tar", samples)
    with pytest.raises(ValueError, match=message):
        build_job("image-classification", JobOptions(str(small.vit(tmp_path / "m")), str(tmp_path / "shards")))


def test_a_stream_of_strings_needs_a_labels_file(tmp_path):
    folder = write_shards(tmp_path / "shards", "png", picture(), "text")
    options = JobOptions(str(small.vit(tmp_path / "m", *NAMES)), str(folder), streaming=True)
    with pytest.raises(DataError, match=r"strings in a stream.*classes\.csv"):
        build_job("image-classification", options)
    (folder / "classes.csv").write_text("label,name\ncat,cat\ndog,dog\ntree,tree\n")
    assert [sample.label for sample in build_job("image-classification", options).data] == list(ORDER)

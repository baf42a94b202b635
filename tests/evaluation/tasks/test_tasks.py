"""The evaluation's tasks on small random models: what is read, how labels and views meet, what is skipped."""

import csv
import inspect
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import small
import torch
import transformers as tf

import hf_tome
from hf_tome import MergeConfig
from hf_tome.cli.app import run
from hf_tome.evaluation.data.labels import ClassNames, LabelError
from hf_tome.evaluation.data.samples import Skipped
from hf_tome.evaluation.data.splits import DataError
from hf_tome.evaluation.options import JobOptions, OptionError
from hf_tome.evaluation.reporting import tables as output
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.tasks.classification import audio
from hf_tome.evaluation.tasks.classification import zero_shot_classes as zero_shot
from hf_tome.evaluation.tasks.registry import COMMON_OPTIONS, TASKS, build_job, register_task
from hf_tome.media.audio import read_audio
from hf_tome.media.video import read_frames
from hf_tome.pipelines import pipeline

pytestmark = pytest.mark.usefixtures("costs_hardly_measured")

R8 = MergeConfig(r=8)


def write_list(path, column, **entries):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", column])
        writer.writerows((name.replace("__", "."), found) for name, found in entries.items())
    return path


def rows_of(results):
    assert [row["name"] for row in results.rows] == ["unmerged", "r=8"]
    return results.rows


# Clips


@pytest.fixture
def clips(tmp_path):
    """Two readable clips, one of them short, and one that is cut off."""
    folder = tmp_path / "clips"
    small.write_clip(folder / "validation" / "yoga" / "long.mp4", 20)
    small.write_clip(folder / "validation" / "yoga" / "short.mkv", 3)
    whole = small.write_clip(folder / "validation" / "arm_wrestling" / "cut.mp4").read_bytes()
    (folder / "validation" / "arm_wrestling" / "cut.mp4").write_bytes(whole[:300])
    (folder / "validation" / "yoga" / "notes.txt").write_text("no clip")
    return folder


def test_clips_are_evaluated_and_a_corrupt_one_is_skipped(tmp_path, clips):
    model = small.videomae(tmp_path / "model")
    job = build_job("video-classification", JobOptions(str(model), str(clips), clips=2, crops=3))
    results = evaluate(job, [R8], batch_size=2)
    unmerged, merged = rows_of(results)
    assert results.data["num_samples"] == 2
    (skipped,) = results.data["skipped"]
    assert skipped["sample"] == "arm_wrestling/cut.mp4"
    assert skipped["reason"].startswith("VideoError: Cannot read cut.mp4: ")
    assert (unmerged["tokens"], merged["tokens"]) == (64, 40)
    assert {name: results.run[name] for name in ("frames", "clips", "crops")} == {"frames": 8, "clips": 2, "crops": 3}


def test_scores_are_averaged_over_views(tmp_path, clips):
    folder = small.videomae(tmp_path / "model")
    job = build_job("video-classification", JobOptions(str(folder), str(clips), clips=2, crops=3))
    sample = next(iter(job.data))
    inputs = job.prepare([sample])
    assert inputs["pixel_values"].shape == (1, 6, 8, 3, 16, 16)
    with torch.inference_mode():
        averaged = job.run(job.model, inputs)
        alone = [job.model(view[None]).logits.softmax(-1) for view in inputs["pixel_values"][0]]
    assert torch.allclose(averaged, torch.stack(alone).mean(0), atol=1e-6)
    assert not torch.allclose(inputs["pixel_values"][0, 0], inputs["pixel_values"][0, 3])  # another time


def test_one_view_is_what_the_pipeline_sees(tmp_path, clips):
    folder = small.videomae(tmp_path / "model")
    job = build_job("video-classification", JobOptions(str(folder), str(clips)))
    (sample, *_) = job.data
    pipe = pipeline("video-classification", folder, merge_config=MergeConfig(r=0), device="cpu")
    expected = {entry["label"]: entry["score"] for entry in pipe(str(clips / "validation" / sample.name))}
    scores = job.run(job.model, job.prepare([sample]))[0]
    assert [expected[job.model.config.id2label[i]] for i in range(3)] == pytest.approx(scores.tolist(), abs=1e-5)


def test_a_list_of_clips(tmp_path, clips):
    entries = {"yoga/long__mp4": "yoga", "yoga/short__mkv": "making a cake", "absent__mp4": "yoga"}
    path = write_list(clips / "validation" / "some.csv", "label", **entries)
    model = small.videomae(tmp_path / "model")
    job = build_job("video-classification", JobOptions(str(model), str(path)))
    assert (job.data.name, job.data.split) == ("some", "some")
    assert [sample.label for sample in job.data] == [0, 2]
    skipped = [found.sample for found in job.data.read() if isinstance(found, Skipped)]
    assert skipped == ["validation/absent.mp4"]


def test_a_clip_that_the_processor_refuses_is_skipped(tmp_path, clips):
    model = small.videomae(tmp_path / "model")
    job = build_job("video-classification", JobOptions(str(model), str(clips)))
    decode = job.data.decode

    def one_pixel_high(stored):
        return [view[:, :1] for view in decode(stored)] if "short" in stored else decode(stored)

    job.data.decode = one_pixel_high
    results = evaluate(job, [R8], batch_size=4)
    assert results.data["num_samples"] == 1
    assert [skipped["sample"] for skipped in results.data["skipped"]] == ["arm_wrestling/cut.mp4", "yoga/short.mkv"]
    assert results.data["skipped"][1]["reason"].startswith("ValueError: mean must have 1 elements")


@pytest.mark.parametrize("column", ["label", "labels"])
def test_lists_with_labels_and_paths_missing(tmp_path, clips, column):
    """Empty fields, and rows that end early, with the mark of a spreadsheet at the beginning."""
    rows = f"path,{column}\nyoga/long.mp4,yoga\nyoga/short.mkv,\nyoga/short.mkv\nyoga/short.mkv, \n,yoga\n"
    (clips / "validation" / "some.csv").write_text(rows, encoding="utf-8-sig")
    model = small.videomae(tmp_path / "model")
    options = JobOptions(str(model), str(clips / "validation" / "some.csv"))
    job = build_job("video-classification", options)
    assert len(list(job.data)) == 1
    reasons = [found.reason for found in job.data.read() if isinstance(found, Skipped)]
    assert reasons[:3] == ["it has no label"] * 3
    assert reasons[3] == "it has neither a path nor bytes"
    with pytest.raises(DataError, match=r"some\.csv is one file, whose samples are its split 'some', and not 'test'"):
        build_job("video-classification", replace(options, split="test"))
    for source in (options.data, str(clips)):
        with pytest.raises(OptionError, match=r"--streaming means nothing to .* files, which is read as"):
            build_job("video-classification", replace(options, data=source, streaming=True))


def test_missing_labels_of_a_data_set(tmp_path):
    images = [*(small.picture(seed) for seed in range(5)), None]
    columns = {"image": images, "label": ["cat", "", None, "dog", "tree", "cat"]}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    rows.save_to_disk(str(tmp_path / "data"))
    options = JobOptions(str(small.vit(tmp_path / "model", "cat", "dog", "tree")), str(tmp_path / "data"))
    job = build_job("image-classification", options)
    assert [sample.label for sample in job.data] == [0, 1, 2]
    assert [found.reason for found in job.data.read() if isinstance(found, Skipped)] == ["it has no label"] * 2 + [
        "it has no image"
    ]
    with pytest.raises(OptionError, match="--streaming"):
        build_job("image-classification", replace(options, streaming=True))


def test_other_tables_among_clips_are_no_splits(tmp_path, clips):
    (clips / "notes.csv").write_text("date,remark\n1,none\n")
    (clips / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    write_list(clips / "few.csv", "label", **{"validation/yoga/long__mp4": "yoga"})
    options = JobOptions(str(small.videomae(tmp_path / "model")), str(clips), split="few")
    assert len(list(build_job("video-classification", options).data)) == 1
    with pytest.raises(DataError, match="has no split 'notes'; it has 'validation', 'few'"):
        build_job("video-classification", replace(options, split="notes"))


def test_no_clips_there(tmp_path):
    (tmp_path / "empty").mkdir()
    model = str(small.videomae(tmp_path / "model"))
    with pytest.raises(
        DataError, match=r"No video files in .*empty.*validation/<class>/<file>\.mp4, or validation\.csv"
    ):
        build_job("video-classification", JobOptions(model, str(tmp_path / "empty")))
    bad = tmp_path / "bad.csv"
    bad.write_text("file,class\n")
    with pytest.raises(DataError, match="columns file, class; a list needs 'path' and 'label'"):
        build_job("video-classification", JobOptions(model, str(bad)))


def test_real_clips(tmp_path, data):
    names = (data / "kinetics_sample" / "kinetics400_classes.txt").read_text().splitlines()
    model = small.videomae(tmp_path / "model", *[name.strip() for name in names if name.strip()])
    options = JobOptions(str(model), str(data / "kinetics_sample"), limit=2)
    results = evaluate(build_job("video-classification", options), [R8], batch_size=2)
    assert results.data["num_samples"] == 2
    assert rows_of(results)[1]["tokens"] == 40


# Sound


def test_sounds_with_one_label(tmp_path):
    for name, frequency in (("cat", 300), ("thunder", 80)):
        small.write_sound(tmp_path / "data" / "test" / name / "a.wav", frequency, rate=44100)
    (tmp_path / "data" / "test" / "cat" / "broken.wav").write_bytes(b"no sound")
    model = small.ast(tmp_path / "model")
    job = build_job("audio-classification", JobOptions(str(model), str(tmp_path / "data")))
    results = evaluate(job, [R8])
    assert "map" not in rows_of(results)[0]
    assert [skipped["sample"] for skipped in results.data["skipped"]] == ["cat/broken.wav"]
    extractor = tf.AutoFeatureExtractor.from_pretrained(model)
    sound = read_audio(tmp_path / "data" / "test" / "cat" / "a.wav", 16000)
    expected = job.model(**extractor(sound, sampling_rate=16000, return_tensors="pt")).logits
    assert torch.allclose(job.run(job.model, job.prepare([next(iter(job.data))])), expected, atol=1e-5)


def test_sounds_with_several_labels(tmp_path):
    for name, frequency in (("a", 300), ("b", 80), ("c", 1000)):
        small.write_sound(tmp_path / f"{name}.wav", frequency)
    path = write_list(tmp_path / "test.csv", "labels", a__wav="cat;alarm", b__wav="thunder", c__wav="cat")
    model = small.ast(tmp_path / "model", problem_type="multi_label_classification")
    job = build_job("audio-classification", JobOptions(str(model), str(path)))
    samples = list(job.data)
    assert [sample.label for sample in samples] == [(0, 2), (1,), (0,)]
    unmerged, merged = rows_of(evaluate(job, [R8], batch_size=2))
    scores = job.run(job.model, job.prepare(samples)).detach().numpy()
    assert ((scores > 0) & (scores < 1)).all()
    from sklearn.metrics import average_precision_score

    targets = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0]])
    assert unmerged["map"] == pytest.approx(100 * average_precision_score(targets, scores))
    assert unmerged["top1"] == pytest.approx(100 * np.mean([targets[i, s.argmax()] for i, s in enumerate(scores)]))
    assert 0 < merged["map"] <= 100
    assert merged["drop"] == pytest.approx(unmerged["map"] - merged["map"])
    assert merged["drop_low"] <= merged["drop"] <= merged["drop_high"]


def test_probabilities_of_labels_in_half_precision_are_told_apart():
    """In bfloat16 the sigmoids of 6 and 6.5 are the same number, and average precision would see a tie."""
    logits = torch.tensor([[6.0, 6.5, 7.0]], dtype=torch.bfloat16)
    scores = audio.label_probabilities(lambda: SimpleNamespace(logits=logits), {})
    assert len(set(scores[0].tolist())) == 3


def test_a_sound_too_short_for_the_model_is_skipped(tmp_path):
    small.write_sound(tmp_path / "data" / "test" / "cat" / "a.wav")
    small.write_sound(tmp_path / "data" / "test" / "cat" / "b.wav", seconds=10 / 16000)
    model = small.ast(tmp_path / "model")
    job = build_job("audio-classification", JobOptions(str(model), str(tmp_path / "data")))
    for _ in range(2):  # it is tried again
        results = evaluate(job, [R8], batch_size=2, out=tmp_path / "out")
        assert results.data["num_samples"] == 1
        assert results.data["skipped"] == [
            {"sample": "cat/b.wav", "reason": "ValueError: negative dimensions are not allowed."}
        ]


def test_real_sounds(tmp_path, data):
    files = [file for file in sorted((data / "audio").glob("*.wav")) if "1000ms" not in file.name][:2]
    for file in files:
        shutil.copy(file, tmp_path)
    entries = {file.name.replace(".", "__"): file.name.split("_")[0] for file in files}
    path = write_list(tmp_path / "esc.csv", "label", **entries)
    model = small.ast(tmp_path / "model", *entries.values())
    results = evaluate(build_job("audio-classification", JobOptions(str(model), str(path))), [R8])
    assert results.data["num_samples"] == len(files)


# Images against sentences


@pytest.fixture
def pictures(tmp_path):
    for position, name in enumerate(("cat", "dog", "big_tree")):
        (tmp_path / "images" / "test" / name).mkdir(parents=True)
        small.picture(position).save(tmp_path / "images" / "test" / name / "0.png")
    return tmp_path / "images"


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_zero_shot_scores_are_the_models_own(tmp_path, pictures, kind):
    folder = small.dual(tmp_path / "model", kind)
    job = build_job("zero-shot-image-classification", JobOptions(str(folder), str(pictures)))
    samples = list(job.data)
    assert [sample.label for sample in samples] == [0, 1, 2]  # big_tree, cat, dog
    tokenizer, processor = tf.AutoTokenizer.from_pretrained(folder), tf.AutoImageProcessor.from_pretrained(folder)
    padding = {"padding": True} if kind == "CLIP" else {"padding": "max_length", "max_length": 64}
    sentences = [f"a photo of a {name}." for name in ("big tree", "cat", "dog")]
    tokens = tokenizer(sentences, return_tensors="pt", **padding)
    images = processor(images=[sample.content for sample in samples], return_tensors="pt")
    with torch.inference_mode():
        logits = job.model(**tokens, **images).logits_per_image
        expected = logits.softmax(-1) if kind == "CLIP" else logits.sigmoid()
        assert torch.allclose(job.run(job.model, job.prepare(samples)), expected, atol=1e-5)
    unmerged, merged = rows_of(evaluate(job, [R8]))
    assert unmerged["tokens"] - merged["tokens"] == 24


def test_a_single_class_is_noted(tmp_path, pictures):
    folder = small.dual(tmp_path / "model")
    shutil.rmtree(pictures / "test" / "dog")
    shutil.rmtree(pictures / "test" / "big_tree")
    job = build_job("zero-shot-image-classification", JobOptions(str(folder), str(pictures)))
    results = evaluate(job, [])
    assert results.run["notes"][0].startswith("the only class is 'cat', so that every image is right")
    assert "the only class is" in output.to_table(results)


def test_templates_are_averaged_and_normalised(tmp_path, pictures):
    folder = small.dual(tmp_path / "model")
    model = tf.CLIPModel.from_pretrained(folder)
    tokenizer, names = tf.AutoTokenizer.from_pretrained(folder), ["cat", "dog"]
    both = zero_shot.class_embeddings(model, tokenizer, names, ["a {}", "the big {}"])
    alone = [zero_shot.class_embeddings(model, tokenizer, names, [text]) for text in ("a {}", "the big {}")]
    expected = torch.nn.functional.normalize(alone[0] + alone[1], dim=-1)
    assert torch.allclose(both, expected, atol=1e-6)
    (tmp_path / "templates.txt").write_text("a {}\n\nthe big {}\n")
    options = JobOptions(str(folder), str(pictures), templates=tmp_path / "templates.txt")
    assert build_job("zero-shot-image-classification", options).settings["templates"] == 2


def test_class_names_from_files(tmp_path):
    labels = ["n01", "n02"]
    described = ClassNames(tmp_path / "classes.csv", {"n00": "ant, bug", "n01": "bee", "n02": "big_cat"})
    assert zero_shot.find_classes(labels, None, None).names == labels
    found = zero_shot.find_classes(labels, None, described)
    assert (found.names, found.index["n02"]) == (["ant", "bee", "big cat"], 2)
    file = tmp_path / "names.json"
    file.write_text('["Ant", "Bee", "Cat"]')
    assert zero_shot.find_classes(labels, file, described).names == ["Ant", "Bee", "Cat"]
    with pytest.raises(LabelError, match="has 3 names, but the data has 2 classes"):
        zero_shot.find_classes(labels, file, None)
    file.write_text('{"n02": "Cat", "n01": "Bee"}')
    assert zero_shot.find_classes(labels, file, None).index == {"n02": 0, "n01": 1}
    file.write_text('{"n02": "Cat"}')
    with pytest.raises(LabelError, match="no name for the label 'n01'"):
        zero_shot.find_classes(labels, file, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no list"),
        ('["a photo"]', "the template 'a photo'"),
        ('["a {}", 3]', r"templates\.json holds 3; it takes texts alone"),
        ('["a {}",', r"templates\.json cannot be read: Expecting value"),
        ('{"a": ["b"]}', r"templates\.json holds \['b'\]"),
    ],
)
def test_bad_templates(tmp_path, text, message):
    (tmp_path / "templates.json").write_text(text)
    with pytest.raises(LabelError, match=message):
        zero_shot.read_templates(tmp_path / "templates.json")


def test_the_80_templates_and_1000_names_fit_the_photographs(data):
    templates = zero_shot.read_templates(data / "zeroshot" / "clip_imagenet_templates_80.json")
    assert len(templates) == 80
    from hf_tome.evaluation.data.labels import find_class_names

    described = find_class_names(data / "imagenet_sample", "validation")
    found = zero_shot.find_classes(["n01440764"], data / "zeroshot" / "clip_imagenet_classnames.json", described)
    assert (len(found.names), found.names[found.index["n01440764"]]) == (1000, "tench")


# What all tasks share


def test_the_pipelines_and_the_command_line_name_the_same_tasks():
    from hf_tome.pipelines import PIPELINE_CLASSES

    others = {"image-to-text", "visual-question-answering", "text-cache"}  # image-text-to-text, and `contexts`
    others |= {"semantic-segmentation"}  # image-segmentation
    unscored = {"image-feature-extraction", "image-text-to-text", "image-segmentation"}
    assert set(TASKS) - others == set(PIPELINE_CLASSES) - unscored


def test_every_task_says_what_it_takes():
    names = {field.name for field in fields(JobOptions)}
    assert set().union(*(task.options for task in TASKS.values())) == names - COMMON_OPTIONS


def test_every_task_is_one_file_of_at_most_60_lines():
    for task in TASKS.values():
        file = inspect.getsourcefile(task.build)
        assert len(Path(file).read_text().splitlines()) <= 60, file


@pytest.fixture
def registry():
    """The table of tasks as it was, whatever is registered."""
    before = dict(TASKS)
    yield TASKS
    TASKS.clear()
    TASKS.update(before)


def test_a_registered_task_is_known_everywhere(registry, tmp_path, pictures, capsys):
    """`hf_tome.register_task` alone makes `--task`, the options, the tables and resuming know it."""

    def build(options):
        job = build_job("image-classification", options)
        job.task = "brightness"
        return job

    hf_tome.register_task("brightness", build, options=["labels"], unit="pictures")
    (pictures / "test" / "big_tree").rename(pictures / "test" / "tree")
    model, out = str(small.vit(tmp_path / "model")), tmp_path / "out"
    arguments = ["eval", "--task", "brightness", "--model", model, "--data", str(pictures), "--config", "r=2"]
    assert run([*arguments, "--out", str(out)]) == 0
    assert "pictures" in capsys.readouterr().out
    assert json.loads((out / "results.json").read_text())["run"]["task"] == "brightness"
    assert run([*arguments, "--clips", "2"]) == 2
    assert "--clips does not apply to the task brightness; it is for video-classification" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "build", "options", "message"),
    [
        ("image-classification", print, (), "There is a task 'image-classification' already"),
        ("My Task", print, (), "name is 'My Task'; it takes lower-case words"),
        ("mine", None, (), "`build` is None; it takes a function"),
        ("mine", print, "clip", "'clip' is no option of single tasks; those are class_names, clips"),
        ("mine", print, ["model"], "'model' is no option of single tasks"),
    ],
)
def test_a_wrong_task_is_refused(registry, name, build, options, message):
    before = dict(registry)
    with pytest.raises((ValueError, TypeError), match=message):
        register_task(name, build, options=options)
    assert registry == before


def test_a_task_that_returns_no_job_is_named(registry):
    register_task("mine", lambda options: None)
    with pytest.raises(TypeError, match="The task 'mine' returned NoneType; its function must return a Job"):
        build_job("mine", JobOptions("m", "d"))


def test_results_are_plain_json(tmp_path, clips):
    job = build_job("video-classification", JobOptions(str(small.videomae(tmp_path / "model")), str(clips)))
    assert json.loads(json.dumps(evaluate(job, []).to_dict()))["run"]["limit"] is None
    assert read_frames(clips / "validation" / "yoga" / "short.mkv", 8).shape == (8, 48, 64, 3)

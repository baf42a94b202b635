"""Folders, files and names as users have them: what is visible is evaluated, and what is left out is counted."""

import csv
import json
import os
import unicodedata

import datasets
import pytest
import small
from test_shards import picture

from hf_tome.evaluation.data.labels import match_labels, read_class_names
from hf_tome.evaluation.data.media_files import open_media
from hf_tome.evaluation.data.samples import Skipped
from hf_tome.evaluation.data.split_names import DataError, split_of_file
from hf_tome.evaluation.data.splits import open_split
from hf_tome.evaluation.options import JobOptions
from hf_tome.evaluation.reporting.tables import FORMATS, write_report
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.tasks.registry import build_job

SUFFIX = {"Image": ".png", "Video": ".mp4", "Audio": ".wav"}
TASK = {"Image": "image-classification", "Video": "video-classification", "Audio": "audio-classification"}
MODEL = {"Image": small.vit, "Video": small.videomae, "Audio": small.ast}
WRITE = {
    "Image": lambda path: small.picture().save(path),
    "Video": lambda path: small.write_clip(path, 4),
    "Audio": small.write_sound,
}
KINDS = list(SUFFIX)


def tree(root, *names):
    """Make empty files, which listing does not read."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def listed(root, kind="Image", split=None):
    """Return the split, and the label and path of each sample."""
    opened, (column, label_column) = open_media(JobOptions("model", str(root), split=split), kind)
    names = getattr(opened.rows.features[label_column], "names", None)
    samples = []
    for row in opened.rows:
        path = row[column]["path"] if isinstance(row[column], dict) else row[column]
        label = row[label_column]
        samples.append((names[label] if names else label, os.path.relpath(path, root)))
    return opened.name, samples


# Class folders


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "classes",
    [
        ["car", "ship", "train", "truck"],
        ["test tube", "train", "validation stamp"],
        ["__x__", "a b", "[x]", "x*", "x?y"],
        ["dev", "cat"],
    ],
)
@pytest.mark.parametrize("place", [".", "validation", "run[1]", "run[1]/validation", "__data__", "train-set"])
def test_all_classes_are_seen_whatever_they_are_called(tmp_path, kind, classes, place):
    end = SUFFIX[kind]
    files = [f"{place}/{name}/{part}{end}" for name in classes for part in ("0", "a train", "test_1", "[2]")]
    tree(tmp_path, *files)
    root = tmp_path / place
    root = root.parent if root.name == "validation" else root
    split, samples = listed(root, kind)
    assert split == ("validation" if place.endswith("validation") else "train")
    assert sorted(label for label, _ in samples) == sorted(classes * 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_with_the_name_of_a_split_is_in_its_own_split_alone(tmp_path, kind):
    end = SUFFIX[kind]
    tree(tmp_path, f"validation/train/3{end}", f"validation/cat/1{end}", f"train/cat/2{end}")
    assert listed(tmp_path, kind, "train") == ("train", [("cat", f"train/cat/2{end}")])
    assert listed(tmp_path, kind, "val")[1] == [
        ("cat", f"validation/cat/1{end}"),
        ("train", f"validation/train/3{end}"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_folders_and_files_are_ignored(tmp_path, kind):
    end = SUFFIX[kind]
    hidden = (f".ipynb_checkpoints/0{end}", f"cat/.ipynb_checkpoints/0{end}", f"cat/._0{end}", f".git/x/0{end}")
    tree(tmp_path, f"cat/0{end}", f"dog/0{end}", *hidden)
    assert listed(tmp_path, kind)[1] == [("cat", f"cat/0{end}"), ("dog", f"dog/0{end}")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_is_the_first_folder_under_the_split(tmp_path, kind):
    end = SUFFIX[kind]
    tree(tmp_path, f"test/cat/deep/er/0{end}", f"test/cat/1{end}", f"test/dog/deep/0{end}")
    _, samples = listed(tmp_path, kind)
    assert sorted(samples) == [
        ("cat", f"test/cat/1{end}"),
        ("cat", f"test/cat/deep/er/0{end}"),
        ("dog", f"test/dog/deep/0{end}"),
    ]


def test_samples_of_nested_folders_have_names_of_their_own(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / "test" / name / "deep").mkdir(parents=True)
        small.picture().save(tmp_path / "data" / "test" / name / "deep" / "0.png")
    job = build_job("image-classification", JobOptions(str(small.vit(tmp_path / "m")), str(tmp_path / "data")))
    assert [(sample.name, sample.label) for sample in job.data] == [("cat/deep/0.png", 0), ("dog/deep/0.png", 1)]
    assert [info.name for info in job.data.listed()] == ["cat/deep/0.png", "dog/deep/0.png"]


def test_splits_and_classes_that_look_alike_are_an_error(tmp_path):
    tree(tmp_path, "car/0.png", "train/steam/0.png", "truck/0.png")
    with pytest.raises(DataError, match=r"unclear whether these are classes or splits.*--split train"):
        listed(tmp_path)
    assert listed(tmp_path, split="train")[1] == [("steam", "train/steam/0.png")]


def test_two_names_of_one_split_stay_apart(tmp_path):
    tree(tmp_path, "val/cat/0.png", "validation/dog/0.png")
    assert listed(tmp_path, split="val")[1] == [("cat", "val/cat/0.png")]
    assert listed(tmp_path, split="validation")[1] == [("dog", "validation/dog/0.png")]


def test_splits_without_classes_are_said(tmp_path):
    tree(tmp_path, "validation/0.png", "train/0.png")
    with pytest.raises(DataError, match=r"image files and no class folders.*<class>"):
        listed(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_links_are_followed_and_pipes_are_not_opened(tmp_path):
    tree(tmp_path / "elsewhere", "0.png", "1.png")
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
    os.mkfifo(tmp_path / "data" / "cat" / "pipe.png")
    _, samples = listed(tmp_path / "data")
    assert ("cat", "cat/link.png") in samples
    assert [path for label, path in samples if label == "dog"] == ["dog/0.png", "dog/1.png"]
    assert not any("pipe" in path for _, path in samples)


# What is left out


def test_files_of_other_types_are_counted_and_listed(tmp_path):
    folder = tmp_path / "data" / "test"
    for name in ("cat/0.png", "cat/1.JPG", "dog/2.Gif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small.picture().save(folder / name)
    tree(folder, "cat/3.heic", "cat/4.HEIC", "dog/notes.txt", "loose.png", "README.md", ".DS_Store")
    job = build_job("image-classification", JobOptions(str(small.vit(tmp_path / "m")), str(tmp_path / "data")))
    results = evaluate(job, [], batch_size=4)
    assert results.data["num_samples"] == 3
    assert results.data["left_out"] == {
        "counts": {"of type .heic": 2, "of type .txt": 1, "outside of class folders": 1},
        "files": ["test/cat/3.heic", "test/cat/4.HEIC", "test/dog/notes.txt", "test/loose.png"],
    }
    said = "4 files left out: 2 of type .heic, 1 of type .txt, 1 outside of class folders"
    assert said in " ".join(FORMATS["table"](results).split())
    write_report(results, tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert said in report
    assert "- test/cat/3.heic" in report


def test_a_folder_of_other_types_says_what_it_holds(tmp_path):
    tree(tmp_path, "test/cat/0.heic", "test/cat/1.heic")
    with pytest.raises(DataError, match=r"No image files in .*2 files left out: 2 of type \.heic"):
        listed(tmp_path)


# Images with a metadata file


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_images_with_metadata_are_of_their_folders_split(tmp_path, form):
    names = ["0.png", "a train.png", "test[1].png"]
    for split in ("train", "validation"):
        folder = tree(tmp_path / "run[1]" / split, *names, "unnamed.png")
        rows = [{"file_name": name, "label": split, "number": 3} for name in names]
        if form == "jsonl":
            (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8-sig")
        elif form == "csv":
            text = "file_name,label,number\n" + "".join(f"{row['file_name']},{split},3\n" for row in rows)
            (folder / "metadata.csv").write_text(text, "utf-8-sig")
        else:
            datasets.Dataset.from_list(rows).to_parquet(folder / "metadata.parquet")
    opened = open_split(str(tmp_path / "run[1]"))
    assert opened.name == "validation"
    assert [os.path.basename(row["image"]["path"]) for row in opened.rows] == names
    assert {(row["label"], row["number"]) for row in opened.rows} == {("validation", 3)}
    assert opened.left_out.to_dict() == {"counts": {"not in the metadata": 1}, "files": ["validation/unnamed.png"]}


def test_metadata_above_the_splits(tmp_path):
    tree(tmp_path, "train/0.png", "test/1.png")
    rows = [{"file_name": name, "label": "cat"} for name in ("train/0.png", "test/1.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert listed(tmp_path) == ("test", [("cat", "test/1.png")])


@pytest.mark.parametrize(
    "text", ["[1]", "{", '{"name": "x"}', '{"file_name": "a", "x": 1}\n{"file_name": "b", "x": "y"}']
)
def test_metadata_that_is_none(tmp_path, text):
    tree(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(DataError, match="metadata"):
        open_split(str(tmp_path))


def test_a_row_of_metadata_without_a_file_has_no_image(tmp_path):
    small.picture().save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,cat\n,dog\n")
    rows = open_split(str(tmp_path)).rows
    assert [row["image"]["path"] and os.path.basename(row["image"]["path"]) for row in rows] == ["a.png", None]


# Shards and Parquet files


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("validation-00000.tar", "validation"),
        ("imagenet1k-val.00.tar", "validation"),
        ("test/00000.parquet", "test"),
        ("data/train-00000-of-00002-abc.parquet", "train"),
        ("strain.tar", "train"),
        ("latest.tar", "train"),
        ("contest_0.tar", "train"),
        ("validation/train_0.tar", "validation"),
    ],
)
def test_splits_of_shards(tmp_path, path, split):
    assert split_of_file(tmp_path.relative_to(tmp_path) / path) == split


def test_all_shards_are_read_whatever_they_are_called(tmp_path):
    folder = tmp_path / "run[1]"
    for number, name in enumerate(("latest", "contest", "[3]", "a")):
        small.write_shard(folder / f"{name}.tar", [(f"cat/{number}", {"png": picture()})])
    tree(folder, ".ipynb_checkpoints/0.tar")
    split, samples = listed(folder)
    assert (split, len(samples)) == ("train", 4)


@pytest.mark.parametrize("streaming", [False, True])
def test_all_parquet_files_are_read_whatever_they_are_called(tmp_path, streaming):
    rows = datasets.Dataset.from_dict({"image": [small.picture()], "label": ["cat"]}).cast_column(
        "image", datasets.Image()
    )
    for name in ("contest", "latest", "[x]"):
        rows.to_parquet(tmp_path / "run[1]" / f"{name}.parquet")
    (tmp_path / "run[1]" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: https://127.0.0.1:9/x.parquet\n---\n"
    )
    opened = open_split(str(tmp_path / "run[1]"), streaming=streaming)
    assert (opened.name, len(list(opened.rows))) == ("train", 3)
    assert all(row["image"]["bytes"] for row in opened.rows)


def test_the_card_of_a_clone_says_what_its_columns_are(tmp_path):
    """Parquet files that were not written by `datasets` do not say it themselves."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = pa.table({"image": [{"bytes": picture(), "path": None}], "label": [1]})
    pq.write_table(table, tmp_path / "test.parquet")
    declared = datasets.info.DatasetInfosDict({"default": datasets.DatasetInfo(features=features)})
    declared.write_to_directory(str(tmp_path))
    opened = open_split(str(tmp_path))
    assert opened.name == "test"
    assert opened.rows.features["label"].names == ["cat", "dog"]
    assert opened.rows[0]["image"]["bytes"] == picture()


def test_a_broken_parquet_file_is_said(tmp_path):
    (tmp_path / "validation.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"Parquet files in .* cannot be read"):
        open_split(str(tmp_path))


# Paths that the data name


def hostile(tmp_path, kind):
    """Return paths that a data set must not open, beside a file that may be opened."""
    secret = tmp_path / f"secret{SUFFIX[kind]}"
    WRITE[kind](secret)
    folder = tmp_path / "data"
    folder.mkdir()
    WRITE[kind](folder / f"good{SUFFIX[kind]}")
    paths = [
        f"good{SUFFIX[kind]}",
        str(secret),
        f"../secret{SUFFIX[kind]}",
        f"x/../../secret{SUFFIX[kind]}",
        f"http://127.0.0.1:9/x{SUFFIX[kind]}",
        f"file://{secret}",
        "tcp://127.0.0.1:9",
        f"concat:{secret}|{secret}",
        "absent" + SUFFIX[kind],
    ]
    return folder, paths


def check(job, number):
    """One sample is read; the reasons for the others name what was given and no path of the machine above it."""
    found = list(job.data.read())
    assert len(found) == number
    assert not isinstance(found[0], Skipped)
    reasons = [one.reason for one in found[1:]]
    assert ["outside the folder" in reason for reason in reasons[:3]] == [True] * 3, reasons
    assert ["is an address" in reason for reason in reasons[3:7]] == [True] * 4, reasons
    assert "there is no file absent" in reasons[7]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: str(make(folder / kind, "cat", "dog", "tree")) for kind, make in MODEL.items()}


@pytest.mark.parametrize("kind", ["Video", "Audio"])
def test_paths_of_a_list_stay_in_its_folder(tmp_path, models, kind):
    folder, paths = hostile(tmp_path, kind)
    with (folder / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *([path, "cat"] for path in paths)])
    for source in (folder, folder / "test.csv"):
        check(build_job(TASK[kind], JobOptions(models[kind], str(source))), len(paths))


def test_paths_of_metadata_stay_in_its_folder(tmp_path, models):
    folder, paths = hostile(tmp_path, "Image")
    rows = [{"file_name": path, "label": "cat"} for path in paths]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check(build_job(TASK["Image"], JobOptions(models["Image"], str(folder))), len(paths))


@pytest.mark.parametrize("kind", ["Image", "Video"])
def test_paths_of_parquet_stay_in_its_folder(tmp_path, models, kind):
    folder, paths = hostile(tmp_path, kind)
    feature = getattr(datasets, kind)(decode=False)
    name = kind.lower()
    rows = datasets.Dataset.from_dict(
        {name: [{"path": path, "bytes": None} for path in paths], "label": ["cat"] * len(paths)},
        features=datasets.Features({name: feature, "label": datasets.Value("string")}),
    )
    import pyarrow.parquet as pq

    pq.write_table(rows.data.table, folder / "test.parquet")
    check(build_job(TASK[kind], JobOptions(models[kind], str(folder))), len(paths))


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_paths_of_captions_stay_in_their_folder(tmp_path, form):
    folder, paths = hostile(tmp_path, "Image")
    rows = [{"image": path, "caption": "a cat"} for path in paths]
    if form == "csv":
        with (folder / "test.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["image", "caption"], *(row.values() for row in rows)])
    else:
        text = json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows))
        (folder / f"test.{form}").write_text(text)
    job = build_job("image-to-text", JobOptions(str(small.llava(tmp_path / "model")), str(folder)))
    check(job, len(paths))


def test_absolute_paths_in_the_folder_are_read(tmp_path, models):
    small.write_sound(tmp_path / "data" / "0.wav")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "test.csv").write_text(f"path,label\n{tmp_path / 'data' / '0.wav'},cat\n")
    for folder in ("data", "link"):
        job = build_job(TASK["Audio"], JobOptions(models["Audio"], str(tmp_path / folder)))
        assert len(list(job.data)) == 1


# Text files


def test_a_byte_order_mark_changes_nothing(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "classes.csv").write_text("label,name\nc,cat\n", encoding)
        assert read_class_names(tmp_path / "classes.csv").names == {"c": "cat"}
        (tmp_path / "classnames.txt").write_text("cat\ndog\n", encoding)
        assert read_class_names(tmp_path / "classnames.txt").by_index == ["cat", "dog"]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_captions_written_by_a_spreadsheet(tmp_path, form):
    small.picture().save(tmp_path / "0.png")
    row = {"image": "0.png", "caption": "a\u2028cat"}
    texts = {"csv": f"image,caption\n0.png,{row['caption']}\n", "json": json.dumps([row])}
    text = texts.get(form, json.dumps(row, ensure_ascii=False) + "\n")
    (tmp_path / f"test.{form}").write_text(text, "utf-8-sig")
    options = JobOptions(str(small.llava(tmp_path / "model")), str(tmp_path / f"test.{form}"))
    (sample,) = build_job("image-to-text", options).data
    assert sample.label == ["a\u2028cat"]


NFC, NFD = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("on_disk", "of_model"), [(NFD, NFC), (NFC, NFD)])
@pytest.mark.parametrize("kind", KINDS)
def test_unicode_forms_of_a_name_are_one_label(tmp_path, kind, on_disk, of_model):
    folder = tmp_path / "data" / "test"
    for name in (on_disk, "dog"):
        (folder / name).mkdir(parents=True)
        WRITE[kind](folder / name / f"0{SUFFIX[kind]}")
    model = MODEL[kind](tmp_path / "model", of_model, "dog", "tree")
    job = build_job(TASK[kind], JobOptions(str(model), str(tmp_path / "data")))
    assert [sample.label for sample in job.data] == [0, 1]
    (tmp_path / "data" / "classes.csv").write_text(f"label,name\n{of_model},tree\ndog,dog\n")
    job = build_job(TASK[kind], JobOptions(str(model), str(tmp_path / "data")))
    assert [sample.label for sample in job.data] == [2, 1]


@pytest.mark.parametrize(("on_disk", "written"), [(NFD, NFC), (NFC, NFD)])
def test_unicode_forms_of_a_path_are_one_file(tmp_path, models, on_disk, written):
    small.write_sound(tmp_path / on_disk / f"{on_disk}.wav")
    (tmp_path / "test.csv").write_text(f"path,label\n{written}/{written}.wav,cat\n", "utf-8")
    job = build_job(TASK["Audio"], JobOptions(models["Audio"], str(tmp_path / "test.csv")))
    assert len(list(job.data)) == 1


def test_labels_of_any_form_match():
    assert match_labels([NFD], {0: NFC}) == {NFD: 0}


def test_two_files_of_one_split_are_refused(tmp_path):
    for form in ("json", "jsonl"):
        (tmp_path / f"test.{form}").write_text('{"image": "0.png", "caption": "x"}')
    with pytest.raises(DataError, match=r"holds both test\.json and test\.jsonl"):
        build_job("image-to-text", JobOptions("model", str(tmp_path)))


# Names that do not exist


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_data_set_is_named(tmp_path, kind):
    with pytest.raises(DataError, match="Cannot open the data set 'nobody/nothing'"):
        build_job(TASK[kind], JobOptions("model", "nobody/nothing"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_model_is_named(tmp_path, kind):
    tree(tmp_path, f"test/cat/0{SUFFIX[kind]}")
    with pytest.raises((OSError, ValueError), match="nobody/nothing"):
        build_job(TASK[kind], JobOptions("nobody/nothing", str(tmp_path)))

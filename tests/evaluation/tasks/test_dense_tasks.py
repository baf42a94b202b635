"""The dense tasks and speech on small random models: what is read, and that the numbers are those of others."""

import json
from collections import Counter
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import small
import torch
from PIL import Image

import hf_tome
from hf_tome import MergeConfig
from hf_tome.evaluation import JobOptions, evaluate
from hf_tome.evaluation.data.boxes import open_boxes
from hf_tome.evaluation.data.files import text_files
from hf_tome.evaluation.data.media_files import open_media
from hf_tome.evaluation.data.samples import Sample, Skipped
from hf_tome.evaluation.data.splits import DataError
from hf_tome.evaluation.data.transcripts import open_transcripts
from hf_tome.evaluation.metrics import boxes, detection, maps, words
from hf_tome.evaluation.metrics.detection import DetectionScorer
from hf_tome.evaluation.reporting import tables
from hf_tome.evaluation.tasks.registry import build_job

pytestmark = pytest.mark.usefixtures("costs_hardly_measured")

R8 = MergeConfig(r=8)


def run_twice(job, folder, batch_size=2):
    """Evaluate, and once more from what is kept, which gives the same."""
    results = evaluate(job(), [R8], batch_size=batch_size, out=folder)
    again = evaluate(job(), [R8], batch_size=batch_size, out=folder)
    quality = tables.quality(results.rows[0]).key
    assert [row[quality] for row in again.rows] == [row[quality] for row in results.rows]
    unmerged, merged = results.rows
    assert unmerged["agreement"] == pytest.approx(100)
    assert merged["agreement"] <= 100
    assert merged["tokens"] < unmerged["tokens"]
    assert merged["drop_low"] <= merged["drop"] <= merged["drop_high"]
    assert f"points of {tables.QUALITY[quality]} lost" in tables.notes(results)
    return unmerged, merged, results


@pytest.fixture
def reads(monkeypatch):
    """How often each text file of the data is read, by name."""
    counts, read_text = Counter(), text_files.read_text

    def count(path):
        counts[path.name] += 1
        return read_text(path)

    monkeypatch.setattr(text_files, "read_text", count)
    return counts


# Masks


@pytest.fixture
def scenes(tmp_path):
    """Three images with masks, one mask of which has a class too many, and an image without one."""
    folder = tmp_path / "scenes"
    for name in ("images", "masks"):
        (folder / "validation" / name).mkdir(parents=True)
    for number in range(4):
        small.picture(number).save(folder / "validation" / "images" / f"{number}.png")
        if number < 3:
            mask = np.random.default_rng(number).integers(0, 3, (40, 56)).astype(np.uint8)
            mask[:5] = 255
            mask[-1, -1] = 7 if number == 2 else 0
            Image.fromarray(mask).save(folder / "validation" / "masks" / f"{number}.png")
    return folder


def test_masks_in_a_folder(tmp_path, scenes):
    model = small.segmenter(tmp_path / "model")
    options = JobOptions(str(model), str(scenes))
    unmerged, _, results = run_twice(lambda: build_job("semantic-segmentation", options), tmp_path / "out")
    assert results.data["num_samples"] == 2
    assert results.data["skipped"] == [
        {"sample": "2.png", "reason": "its mask holds the number 7, and there are 3 classes"}
    ]
    assert results.data["left_out"]["counts"] == {"without a mask": 1}
    job = build_job("semantic-segmentation", options)
    samples = list(job.data)
    with torch.inference_mode():
        out = job.model(**job.prepare(samples))
    predicted = job.scorer.processor.post_process_semantic_segmentation(out, target_sizes=[(40, 56)] * 2)
    target = np.stack([sample.content.values for sample in samples])
    shares = []
    for name in range(3):
        is_predicted, is_right = (np.stack(predicted) == name) & (target >= 0), target == name
        if (is_predicted | is_right).any():
            shares.append((is_predicted & is_right).sum() / (is_predicted | is_right).sum())
    assert unmerged["miou"] == pytest.approx(100 * np.mean(shares))


@pytest.mark.parametrize("layout", ["by kind", "no split"])
def test_layouts_of_masks(tmp_path, scenes, layout):
    root = tmp_path / "other"
    root.mkdir()
    for name, own in (("images", "images"), ("masks", "annotations")):
        place = root / own / "validation" if layout == "by kind" else root / own
        place.parent.mkdir(exist_ok=True)
        (scenes / "validation" / name).rename(place)
    job = build_job("semantic-segmentation", JobOptions(str(small.segmenter(tmp_path / "model")), str(root)))
    assert job.data.split == ("validation" if layout == "by kind" else "train")
    assert [sample.name for sample in job.data] == ["0.png", "1.png"]
    with pytest.raises(DataError, match="holds no folder of images with one of masks beside it"):
        build_job("semantic-segmentation", JobOptions(str(tmp_path / "model"), str(root / "images")))


def test_masks_with_names_of_their_own(tmp_path, scenes):
    """A labels file says what the data's numbers are called; they are matched with the model's by name."""
    (scenes / "classnames.txt").write_text("door\nfloor\nwall\n")
    job = build_job("semantic-segmentation", JobOptions(str(small.segmenter(tmp_path / "model")), str(scenes)))
    (sample, *_) = job.data
    stored = np.asarray(Image.open(scenes / "validation" / "masks" / "0.png"))
    assert np.array_equal(sample.content.values[stored == 0], np.full((stored == 0).sum(), 2))  # a door
    assert (sample.content.values[stored == 255] == -1).all()


def test_masks_of_a_data_set(tmp_path):
    columns = {
        "image": [small.picture(0), small.picture(1)],
        "annotation": [Image.fromarray(np.full((20, 20), 1, dtype=np.uint8)), small.picture(2)],
    }
    rows = datasets.Dataset.from_dict(columns)
    rows = rows.cast_column("image", datasets.Image()).cast_column("annotation", datasets.Image())
    rows.save_to_disk(str(tmp_path / "data"))
    options = JobOptions(str(small.segmenter(tmp_path / "model")), str(tmp_path / "data"))
    job = build_job("semantic-segmentation", options)
    found = list(job.data.read())
    assert found[0].content.values.tolist() == [[1] * 20] * 20
    assert isinstance(found[1], Skipped)
    assert "it has the mode RGB; a map has one number a pixel" in found[1].reason
    results = hf_tome.evaluate(str(options.model), rows.select([0]), "r=8", progress=False)
    assert results.run["task"] == "semantic-segmentation"


# Depths


def test_depths_in_a_folder(tmp_path):
    folder = tmp_path / "rooms" / "test"
    for name in ("images", "depths"):
        (folder / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(3):
        small.picture(number).save(folder / "images" / f"{number}.jpg")
        depth = generator.uniform(0.5, 9, (30, 40))
        if number == 0:
            np.save(folder / "depths" / "0.npy", depth.astype(np.float32))
        else:
            Image.fromarray((1000 * depth * (number < 2)).astype(np.uint16)).save(folder / "depths" / f"{number}.png")
    options = JobOptions(str(small.depth(tmp_path / "model")), str(folder.parent))
    unmerged, merged, results = run_twice(lambda: build_job("depth-estimation", options), tmp_path / "out")
    assert results.data["skipped"] == [{"sample": "2.jpg", "reason": "its depth map has no depth above 0"}]
    assert results.run["depth"] == "inverse, scale and shift fitted to each image"
    assert 0 < unmerged["delta1"] < 100 < 1000 > merged["abs_rel"] > 0
    (_, second, *_) = build_job("depth-estimation", JobOptions(options.model, options.data, depth_scale=500.0)).data
    assert 1 < second.content.values.max() <= 18


def test_depth_errors_are_the_published_ones():
    depth = np.array([[1.0, 2.0, 4.0, 0.0]])
    assert maps.depth_errors(np.array([[1.1, 2.0, 2.0, 9.0]]), depth, False) == {
        "abs_rel": pytest.approx((0.1 + 0 + 0.5) / 3),
        "delta1": pytest.approx(200 / 3),
    }
    exact = maps.depth_errors(5 * (1 / np.maximum(depth, 0.1)) - 3, depth, True)  # whatever the scale and the shift
    assert exact == {"abs_rel": pytest.approx(0, abs=1e-9), "delta1": pytest.approx(100)}


def test_grids_survive():
    values = np.random.default_rng(0).integers(0, 60000, (100, 30))
    assert len(maps.unpack_grid(maps.pack_grid(values))) == 64 * 30
    assert not maps.is_grid("no grid")
    assert not maps.is_grid(None)
    assert maps.correlation(np.arange(9), 3 * np.arange(9) + 2) == pytest.approx(1)
    assert maps.correlation(np.ones(9), np.arange(9)) == 0


# Boxes


def random_detections(seed, images=12, classes=3):
    """Right boxes, some of them crowds, and predictions near them and elsewhere."""
    generator = np.random.default_rng(seed)
    samples, results = [], []
    for number in range(images):
        count = int(generator.integers(0, 6))
        corners = generator.uniform(0, 60, (count, 2))
        right = np.concatenate([corners, corners + generator.uniform(5, 40, (count, 2))], axis=1)
        names = generator.integers(0, classes, count)
        crowd = generator.random(count) < 0.2
        label = [[int(n), *box, int(c)] for n, box, c in zip(names, right.tolist(), crowd)]
        samples.append(Sample(str(number), SimpleNamespace(size=(100, 100)), label, number))
        moved = np.concatenate([right + generator.normal(0, 4, right.shape), generator.uniform(0, 90, (4, 4))])
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        found = np.concatenate([names, generator.integers(0, classes, 4)])
        results.append(
            {
                "scores": torch.tensor(generator.permutation(len(found)) / len(found) + number / 1000),
                "labels": torch.tensor(found),
                "boxes": torch.tensor(moved.round(2)),
            }
        )
    return samples, results


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_cocos(seed):
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    samples, results = random_detections(seed)
    scorer = DetectionScorer(SimpleNamespace(post_process_object_detection=lambda *_, **__: results))
    records = scorer.records(samples, {})
    ours = scorer.metrics(records, records)
    truth = coco.COCO()
    annotations = [
        {
            "image_id": s.position,
            "category_id": t[0] + 1,
            "iscrowd": t[5],
            "bbox": [t[1], t[2], t[3] - t[1], t[4] - t[2]],
            "area": (t[3] - t[1]) * (t[4] - t[2]),
        }
        for s in samples
        for t in s.label
    ]
    truth.dataset = {
        "images": [{"id": s.position} for s in samples],
        "categories": [{"id": n + 1} for n in range(3)],
        "annotations": [{"id": i + 1, **a} for i, a in enumerate(annotations)],
        "info": {},
    }
    truth.createIndex()
    found = truth.loadRes(
        [
            {
                "image_id": s.position,
                "category_id": int(n) + 1,
                "score": float(c),
                "bbox": [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])],
            }
            for s, r in zip(samples, results)
            for n, c, b in zip(r["labels"], r["scores"], r["boxes"])
        ]
    )
    judge = COCOeval(truth, found, "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert ours["box_map"] == pytest.approx(100 * judge.stats[0], abs=1e-6)
    assert ours["box_ap50"] == pytest.approx(100 * judge.stats[1], abs=1e-6)
    assert ours["agreement"] == pytest.approx(100)
    assert json.loads(json.dumps(records)) == records


def test_resamples_of_the_unmerged_model_serve_all_configs(monkeypatch):
    resampled = []

    def mean_average_precision(tables, counts):
        resampled.append(counts.shape[1])
        return boxes.mean_average_precision(tables, counts)

    monkeypatch.setattr(detection, "FEWEST_RESAMPLES", 3)
    monkeypatch.setattr(detection, "mean_average_precision", mean_average_precision)
    samples, results = random_detections(0)
    scorer, fresh = (
        DetectionScorer(SimpleNamespace(post_process_object_detection=lambda *_, **__: results)) for _ in range(2)
    )
    unmerged = scorer.records(samples, {})
    first, second = ([{**record, "boxes": record["boxes"][:count]} for record in unmerged] for count in (2, 4))
    drops = [scorer.metrics(done, unmerged) for done in (unmerged, first, second)]
    assert resampled.count(3) == 3
    assert drops[2] == fresh.metrics(second, unmerged)
    assert drops[2]["drop_low"] <= drops[2]["drop"] == pytest.approx(drops[0]["box_map"] - drops[2]["box_map"])
    assert scorer.metrics(second, first) == fresh.metrics(second, first)


def test_shared_boxes():
    box, other = [[0.0, 0, 10, 10]], [[50.0, 50, 60, 60]]
    one, two = np.array([1]), np.array([2])
    score = np.array([0.5])
    assert boxes.shared_boxes(one, np.array(box), one, np.array(box), score) == 1
    assert boxes.shared_boxes(two, np.array(box), one, np.array(box), score) == 0
    assert boxes.shared_boxes(one, np.array(other), one, np.array(box), score) == 0
    nothing = np.zeros((0, 4))
    assert boxes.shared_boxes(one[:0], nothing, one[:0], nothing, score[:0]) == 1


def test_boxes_of_coco(tmp_path):
    folder = tmp_path / "streets"
    (folder / "images").mkdir(parents=True)
    images = []
    for number in range(3):
        small.picture(number).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
    boxes_of_images = [{"image_id": 0, "category_id": 4, "bbox": [2, 3, 20, 20]}]
    boxes_of_images += [{"image_id": 1, "category_id": 9, "bbox": [5, 5, 30, 30], "iscrowd": 0}]
    categories = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]
    content = {"images": images, "annotations": boxes_of_images, "categories": categories}
    (folder / "instances_validation.json").write_text(json.dumps(content))
    options = JobOptions(str(small.owl(tmp_path / "model")), str(folder))
    unmerged, _, results = run_twice(lambda: build_job("zero-shot-object-detection", options), tmp_path / "out")
    assert results.data["num_samples"] == 3
    assert 0 <= unmerged["box_map"] <= unmerged["box_ap50"] <= 100
    labels = [sample.label for sample in build_job("zero-shot-object-detection", options).data]
    assert labels == [[[0, 2.0, 3.0, 22.0, 23.0, 0]], [[1, 5.0, 5.0, 35.0, 35.0, 0]], []]
    (folder / "instances_validation.json").write_text("{}")
    options = JobOptions(options.model, str(folder / "instances_validation.json"))
    with pytest.raises(DataError, match="takes an object with `images`, `categories` and `annotations`"):
        build_job("zero-shot-object-detection", options)


def test_files_of_a_folder_are_read_once(tmp_path, reads):
    content = json.dumps({"images": [{"id": 0, "file_name": "0.png"}], "annotations": [], "categories": []})
    for name, text in (("train", content), ("test", content), ("notes", "[]")):
        (tmp_path / f"{name}.json").write_text(text)
    assert open_boxes(JobOptions("", str(tmp_path), split="test")).opened.name == "test"
    assert reads == {"train.json": 1, "test.json": 1, "notes.json": 1}
    reads.clear()
    (tmp_path / "annotations").mkdir()
    for name in ("instances_val2017", "person_keypoints_val2017"):
        (tmp_path / "annotations" / f"{name}.json").write_text(content)
    assert open_boxes(JobOptions("", str(tmp_path))).opened.name == "val2017"
    assert reads == {"instances_val2017.json": 1}


def test_boxes_of_a_detector(tmp_path):
    """Classes are the model's own, matched by name."""
    small.picture().save(tmp_path / "0.png")
    content = {
        "images": [{"id": 0, "file_name": "0.png"}],
        "annotations": [{"image_id": 0, "category_id": 5, "bbox": [2, 3, 20, 20]}],
        "categories": [{"id": 5, "name": "tree"}],
    }
    (tmp_path / "test.json").write_text(json.dumps(content))
    options = JobOptions(str(small.lw_detr(tmp_path / "model")), str(tmp_path / "test.json"))
    job = build_job("object-detection", options)
    assert [sample.label for sample in job.data] == [[[2, 2.0, 3.0, 22.0, 23.0, 0]]]
    unmerged, merged = evaluate(job, [MergeConfig(r=2)]).rows
    assert unmerged["agreement"] == pytest.approx(100)
    assert 0 <= merged["agreement"] <= 100
    (tmp_path / "test.json").write_text(json.dumps(content).replace("tree", "bicycle"))
    with pytest.raises(ValueError, match="The model has no label 'bicycle'"):
        build_job("object-detection", options)


def test_boxes_of_a_data_set(tmp_path):
    names = datasets.ClassLabel(names=["dog", "cat"])
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": {
                "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
                "category": datasets.Sequence(names),
            },
        }
    )
    objects = [{"bbox": [[1, 2, 3, 4]], "category": [1]}, {"bbox": [], "category": []}]
    rows = datasets.Dataset.from_dict({"image": [small.picture(0), small.picture(1)], "objects": objects}, features)
    rows.save_to_disk(str(tmp_path / "data"))
    options = JobOptions(str(small.owl(tmp_path / "model")), str(tmp_path / "data"))
    assert [sample.label for sample in build_job("zero-shot-object-detection", options).data] == [
        [[1, 1.0, 2.0, 4.0, 6.0, 0]],
        [],
    ]


# Speech


def test_recordings_with_transcripts(tmp_path):
    folder = tmp_path / "speech"
    for name, frequency in (("a", 300), ("b", 80)):
        small.write_sound(folder / f"{name}.wav", frequency)
    small.write_sound(folder / "long.wav", seconds=1.5)
    (folder / "test.csv").write_text('path,text\na.wav,Abc d\nb.wav,"B, c"\nlong.wav,x\nabsent.wav,x\na.wav,\n')
    options = JobOptions(str(small.whisper(tmp_path / "model")), str(folder), max_new_tokens=6)
    unmerged, merged, results = run_twice(lambda: build_job("automatic-speech-recognition", options), tmp_path / "out")
    assert results.data["num_samples"] == 2
    assert [skipped["reason"] for skipped in results.data["skipped"]] == [
        "it lasts 1.5 s, longer than the model's 1 s",
        "there is no file absent.wav in the folder of the data",
        "it has no transcript",
    ]
    assert (unmerged["tokens"], merged["tokens"]) == (50, 26)
    assert unmerged["wer"] == 100 - unmerged["word_accuracy"]
    assert "frames at end" in tables.notes(results)


@pytest.mark.parametrize("label", ["text", "label"])
def test_lists_of_a_folder_are_read_once(tmp_path, reads, label):
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(f"path,{label}\na.wav,x\n")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    options = JobOptions("", str(tmp_path))
    opened = open_transcripts(options, None) if label == "text" else open_media(options, "Audio")[0]
    assert len(opened.rows) == 1
    assert reads == {"train.csv": 1, "test.csv": 1, "notes.csv": 1}


def test_word_errors():
    assert words.edit_distance(["a", "b", "c"], ["a", "x", "c", "d"]) == 2
    assert words.edit_distance([], ["a"]) == 1
    assert words.normal_words("Don't, STOP!") == ["don", "t", "stop"]
    jiwer = pytest.importorskip("jiwer")
    generator = np.random.default_rng(0)
    for _ in range(20):
        one, other = ("".join(generator.choice(list("ab "), 12)).split() or ["a"] for _ in range(2))
        assert words.edit_distance(one, other) / len(one) == pytest.approx(jiwer.wer(" ".join(one), " ".join(other)))

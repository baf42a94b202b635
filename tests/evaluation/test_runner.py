"""The evaluation on real images: data and what is wrong with it, metrics, rows and what is written."""

import csv
import json
from dataclasses import replace

import datasets
import pytest
import torch
from PIL import Image

from hf_tome import MergeConfig
from hf_tome.cli import common
from hf_tome.cli.common import Format
from hf_tome.evaluation.data import digits
from hf_tome.evaluation.data import splits as data
from hf_tome.evaluation.reporting import plots
from hf_tome.evaluation.reporting import tables as output
from hf_tome.evaluation.running.runner import JobOptions, evaluate
from hf_tome.evaluation.tasks.classification.image_classification import digits_classification
from hf_tome.evaluation.tasks.registry import build_job
from hf_tome.evaluation.variants import as_variants
from hf_tome.hub.sources import SourceError
from hf_tome.media.limits import MediaLimits
from hf_tome.profiling.measure import peak_memory_mib


@pytest.fixture
def digit_folder(tmp_path):
    """24 held-out digits as PNG files in validation/<digit>/, in a folder that is not in label order."""
    for position, sample in enumerate(digits.load_digits("test").select(range(24))):
        folder = tmp_path / "digits" / "validation" / str(sample["label"])
        folder.mkdir(parents=True, exist_ok=True)
        sample["image"].save(folder / f"{position:02}.png")
    return tmp_path / "digits"


def job_on(folder, **options):
    return build_job("image-classification", JobOptions(str(digits.MODEL_DIR), str(folder), **options))


@pytest.fixture(scope="module")
def results():
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(90))
    configs = [MergeConfig(r=0), MergeConfig(r=32), MergeConfig(method="mame", threshold=0.8)]
    return evaluate(job, configs, batch_size=16)


# The shipped model and its data


def test_digits_split_is_fixed_stratified_and_disjoint():
    train, test = digits.load_digits("train"), digits.load_digits("test")
    assert (len(train), len(test)) == (1257, 540)
    assert min(test["label"].count(digit) for digit in range(10)) >= 52
    pixels = [{image.tobytes() for image in split["image"]} for split in (train, test)]
    assert not pixels[0] & pixels[1]
    with pytest.raises(ValueError, match=r"no split 'validation'.*'train', 'test'"):
        digits.load_digits("validation")


def test_shipped_model_is_small_and_as_accurate_as_its_card_says(results):
    assert sum(file.stat().st_size for file in digits.MODEL_DIR.iterdir()) < 2**20
    card = (digits.MODEL_DIR / "README.md").read_text()
    job = digits_classification()
    inputs = job.prepare(list(job.data))
    with torch.inference_mode():
        right = (job.run(job.model, inputs).argmax(-1) == torch.tensor([s.label for s in job.data])).sum().item()
    assert right >= 0.95 * 540
    assert f"({right} of 540)" in card


# What an evaluation returns


def test_unmerged_comes_first_and_once():
    merged = MergeConfig(r=8)
    variants = as_variants([merged, MergeConfig(r=0), merged])
    assert [(variant.name, variant.config) for variant in variants] == [("unmerged", MergeConfig()), ("r=8", merged)]


def test_rows_hold_what_was_measured(results):
    unmerged, tome, mame = results.rows
    assert [row["name"] for row in results.rows] == ["unmerged", "r=32", "method=mame,threshold=0.8"]
    assert MergeConfig.from_dict(tome["config"]) == MergeConfig(r=32)
    assert (unmerged["agreement"], unmerged["speedup"], unmerged["tokens"]) == (100.0, 1.0, 257.0)
    assert unmerged["gflops"] == pytest.approx(0.170, abs=1e-3)
    assert tome["tokens"] == 17
    assert 2 < mame["tokens"] < 60
    for row in (tome, mame):
        assert row["gflops"] < 0.6 * unmerged["gflops"]
        assert 90 < row["top1"] <= row["top5"] <= 100
        assert 90 < row["agreement"] <= 100
        assert min(row["samples_per_second"], row["speedup"], row["peak_memory_mib"]) > 0
    assert results.data == {"id": "scikit-learn digits", "split": "test", "num_samples": 90, "skipped": []}
    assert results.environment["packages"]["torch"]


def test_model_is_left_as_it_was():
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(8))
    kinds = [type(module) for module in job.model.modules()]
    evaluate(job, [MergeConfig(r=16)])
    assert [type(module) for module in job.model.modules()] == kinds


def test_a_config_that_does_not_fit_is_found_before_anything_runs():
    job = digits_classification()
    job.prepare = None
    with pytest.raises(ValueError, match="`r` lists 9 blocks, but the model has 8"):
        evaluate(job, [MergeConfig(r=[1] * 9)])


def test_peak_memory_counts_weights_and_what_lives_at_once():
    layer, mib = torch.nn.Linear(512, 512, bias=False), 2**18

    def run():
        first = torch.ones(mib)
        del first
        second = torch.ones(2 * mib)
        return second.view(2, -1).sum() + layer.weight.t()[0, 0]

    assert peak_memory_mib(run, layer, torch.device("cpu")) == pytest.approx(1 + 2, abs=0.01)


# Data, good and bad


def test_a_folder_of_images_gives_what_the_arrays_give(digit_folder):
    job = job_on(digit_folder, split="validation")
    row = evaluate(job, []).rows[0]
    expected = digits_classification()
    expected.data.rows = expected.data.rows.select(range(24))
    assert row["top1"] == evaluate(expected, []).rows[0]["top1"]
    assert (job.data.name, job.data.split, job.model_name) == ("digits", "validation", "digits-vit")


def test_unreadable_images_are_skipped_and_listed(digit_folder):
    (digit_folder / "validation" / "0" / "broken.png").write_bytes(b"not an image")
    whole = next((digit_folder / "validation" / "1").iterdir()).read_bytes()
    (digit_folder / "validation" / "1" / "cut.png").write_bytes(whole[: len(whole) // 2])
    results = evaluate(job_on(digit_folder), [])
    assert results.data["num_samples"] == 24
    skipped = {sample["sample"]: sample["reason"] for sample in results.data["skipped"]}
    assert sorted(skipped) == ["0/broken.png", "1/cut.png"]
    assert "cannot identify image file" in skipped["0/broken.png"]
    assert str(digit_folder) not in json.dumps(results.to_dict())
    assert "2 skipped" in output.to_table(results)


@pytest.mark.parametrize("kept_as", ["bytes", "path", "decoded"])
def test_photographs_are_turned_as_their_camera_noted(tmp_path, kept_as):
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    image.save(tmp_path / "phone.jpg", exif=exif)
    photograph = {"bytes": (tmp_path / "phone.jpg").read_bytes(), "path": None}
    if kept_as == "path":
        photograph = {"bytes": None, "path": str(tmp_path / "phone.jpg")}
    if kept_as == "decoded":
        photograph = datasets.Image().decode_example(photograph)
    assert data.open_image(photograph).size == (20, 40)


def test_images_above_a_limit_are_skipped(digit_folder):
    with pytest.raises(data.DataError, match=r"pixels, above the limit image_pixels=9"):
        evaluate(job_on(digit_folder, media_limits=MediaLimits(image_pixels=9)), [])


def test_nothing_readable_is_an_error(tmp_path):
    for digit in "01":
        (tmp_path / "validation" / digit).mkdir(parents=True)
        (tmp_path / "validation" / digit / "broken.png").write_bytes(b"not an image")
    with pytest.raises(data.DataError, match=r"None of the 2 samples.*0/broken\.png: ImageError: cannot identify"):
        evaluate(job_on(tmp_path), [])


def test_splits_are_chosen_and_named(digit_folder):
    assert data.open_split(str(digit_folder)).name == "validation"
    assert data.open_split(str(digit_folder), "val").name == "validation"
    with pytest.raises(data.DataError, match="no split 'tset'; it has 'validation'"):
        data.open_split(str(digit_folder), "tset")
    with pytest.raises(data.DataError, match="only 'train'"):
        data.open_split(str(digit_folder / "validation"), "validation")


def test_saved_and_streamed_data_sets_open_too(digit_folder, tmp_path):
    digits.load_digits("test").select(range(24)).save_to_disk(tmp_path / "saved")
    saved = evaluate(job_on(tmp_path / "saved"), []).rows[0]
    streamed = evaluate(job_on(digit_folder, streaming=True, limit=24), []).rows[0]
    assert saved["top1"] == streamed["top1"]


def test_limit_draws_the_same_samples_for_the_same_seed(digit_folder):
    def names(seed):
        return [sample.name for sample in job_on(digit_folder, limit=10, seed=seed).data]

    assert len(names(0)) == 10
    assert names(0) == names(0) != names(1)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("{tmp}/empty", data.DataError, "No image files in .*empty"),
        ("{tmp}/absent", SourceError, "not a folder"),
        ("nobody/nothing", data.DataError, "Cannot open the data set 'nobody/nothing'"),
    ],
)
def test_data_that_are_not_there(tmp_path, source, error, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message):
        data.open_split(source.format(tmp=tmp_path))


def test_labels_the_model_lacks_are_named(digit_folder):
    (digit_folder / "validation" / "zebra").mkdir()
    Image.new("RGB", (8, 8)).save(digit_folder / "validation" / "zebra" / "0.png")
    with pytest.raises(ValueError, match=r"no label 'zebra'.*10 labels are '0', '1'"):
        job_on(digit_folder)


def test_a_labels_file_renames(digit_folder, tmp_path):
    (digit_folder / "validation" / "0").rename(digit_folder / "validation" / "zero")
    (tmp_path / "names.csv").write_text("label,name\nzero,0\n")
    assert len(list(job_on(digit_folder, labels=tmp_path / "names.csv").data)) == 24


def test_a_checkpoint_without_a_classifier_is_refused(digit_folder, tmp_path):
    from transformers import AutoImageProcessor, AutoModel

    AutoModel.from_pretrained(digits.MODEL_DIR).save_pretrained(tmp_path / "backbone")
    AutoImageProcessor.from_pretrained(digits.MODEL_DIR).save_pretrained(tmp_path / "backbone")
    with pytest.raises(ValueError, match="lacks weights of ViTForImageClassification"):
        build_job("image-classification", JobOptions(str(tmp_path / "backbone"), str(digit_folder)))


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="Unknown task 'juggling'; known are image-classification"):
        build_job("juggling", JobOptions("m", "d"))


# What is written


def test_output_formats_hold_the_same_rows(results):
    as_json = json.loads(output.to_json(results))
    assert set(as_json) >= {"environment", "data", "rows"}
    as_csv = list(csv.DictReader(output.to_csv(results).splitlines()))
    assert [float(row["top1"]) for row in as_csv] == [row["top1"] for row in as_json["rows"]]
    assert as_csv[1]["config"] == "r=32"
    markdown = output.to_markdown(results).splitlines()
    assert markdown[0].startswith("| config | top-1 % | top-5 % | agrees % | drop, 95 % interval | tokens at end |")
    assert len(markdown) == 2 + len(results.rows)
    table = output.to_table(results)
    assert all(f"{row['top1']:.2f}" in table for row in results.rows)
    assert "mame 0.8" in table
    named = replace(results, rows=[{**row, "name": "[red]" + row["name"]} for row in results.rows])
    assert "[red]unmerged" in output.to_table(named)


def test_report_and_plot_are_written(results, tmp_path):
    output.write_report(results, tmp_path, [("pareto.png", "Pareto")])
    plots.plot_pareto(results, tmp_path / "pareto.png")
    assert json.loads((tmp_path / "results.json").read_text()) == results.to_dict()
    assert "![Pareto](pareto.png)" in (tmp_path / "report.md").read_text()
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.size == (1300, 550)


def test_names_with_dollar_signs_are_drawn(results, tmp_path):
    rows = [{**row, "name": f"{row['name']}$^$"} for row in results.rows]
    named = replace(results, run={**results.run, "model": "a_$\\frac$"}, data={**results.data, "id": "$x"}, rows=rows)
    plots.plot_pareto(named, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").is_file()


def test_rows_of_unknown_cost_are_left_out_of_their_panel_alone(results, tmp_path):
    """One row without GFLOPs does not take the panel away, and without any panel there is no plot."""
    first, *rest = results.rows
    partly = replace(results, rows=[first, *({**row, "gflops": None} for row in rest)])
    labels = [label for _, label in plots.panels(partly)]
    assert labels[0].endswith(f"known of 1 of {len(results.rows)} configs")
    assert labels[1] == "images/s (more is better)"
    plots.plot_pareto(partly, tmp_path / "pareto.png")
    none = replace(results, rows=[{**row, "gflops": None, "samples_per_second": None} for row in results.rows])
    with pytest.raises(ValueError, match="neither GFLOPs nor speeds"):
        plots.plot_pareto(none, tmp_path / "pareto.png")
    common.publish(none, Format.csv, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "report.md"}
    assert "pareto" not in (tmp_path / "report.md").read_text()


def test_results_are_shown_before_they_are_drawn(results, tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(plots, "plot_pareto", broken)
    with pytest.raises(RuntimeError, match="no room"):
        common.publish(results, Format.csv, tmp_path)
    assert capsys.readouterr().out.startswith("config,top1")
    assert (tmp_path / "results.json").is_file()


def test_what_is_drawn_is_the_measure():
    assert output.quality({"top1": 1, "top5": 1, "map": 1}).key == "map"
    assert output.quality({"top1": 1, "top5": 1}).key == "top1"
    assert output.quality({"rouge_l": 1, "cider": 1}).key == "cider"


def test_plot_labels_do_not_overlap():
    """Many points in nearly the same place, each label at a spot of its own."""
    from matplotlib.transforms import Bbox

    window, taken = Bbox.from_extents(0, 0, 600, 400), []
    for step in range(12):
        box = plots._free_spot(torch.tensor([300.0 + step, 200.0]).numpy(), 60, 12, taken, window)
        assert not any(box.overlaps(other) for other in taken)
        taken.append(box)


# The real numbers


@pytest.mark.usefixtures("costs_hardly_measured")
def test_deit_on_photographs(data):
    """Forty photographs drawn at random; the slow test below takes all."""
    folder = data / "imagenet_sample"
    options = JobOptions(str(data / "deit-tiny-patch16-224"), str(folder), "validation", limit=40)
    unmerged, merged = evaluate(build_job("image-classification", options), [MergeConfig(r=8)]).rows
    assert 65 <= unmerged["top1"] <= 90
    assert merged["agreement"] >= 85
    assert merged["tokens"] == 101


@pytest.mark.slow
def test_deit_on_all_photographs(data):
    """To within 0.2 points of what the authors' code gives on the same photographs."""
    expected = {0: (75.9, 93.4, 100), 4: (75.4, 93.2, 95.9), 8: (74.1, 93.0, 93.1), 13: (73.6, 92.5, 88.7)}
    expected[16] = (70.7, 91.0, 84.7)
    options = JobOptions(str(data / "deit-tiny-patch16-224"), str(data / "imagenet_sample"), "validation")
    job = build_job("image-classification", options)
    for row in evaluate(job, [MergeConfig(r=r) for r in expected]).rows:
        measured = (row["top1"], row["top5"], row["agreement"])
        assert measured == pytest.approx(expected[row["config"]["r"]], abs=0.2)

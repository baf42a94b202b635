"""Sweeps with their controls, model cards made from results, and the benchmark command."""

import csv
import json
import re
import shutil
from dataclasses import replace

import pytest
import small
import speaking
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_tome import MergeConfig
from hf_tome.cli.app import run
from hf_tome.evaluation.data.digits import MODEL_DIR
from hf_tome.evaluation.options import JobOptions
from hf_tome.evaluation.reporting import model_card as results_card
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.search.sweep import Grid, with_controls
from hf_tome.evaluation.tasks.classification.image_classification import digits_classification
from hf_tome.evaluation.tasks.generation.captioning import captioning_job
from hf_tome.evaluation.tasks.registry import build_job


@pytest.fixture(scope="module")
def swept(digit_folder, tmp_path_factory):
    """The folder that one sweep wrote."""
    out = tmp_path_factory.mktemp("sweep")
    arguments = ["sweep", "--model", MODEL_DIR, "--data", digit_folder, "--r", "16", "--threshold", "0.8"]
    assert run([*map(str, arguments), "--batch-size", "6", "--out", str(out), "--format", "csv"]) == 0
    return out


def test_grid():
    grid = Grid(
        methods=("tome", "mame", "kmeans"), r=(4, 8), schedules=(0, -1.0), thresholds=(0.9,), layers=(None, [0, 1])
    )
    configs = grid.configs()
    assert len(configs) == 2 * 2 * 2 + 2 + 8
    assert MergeConfig(r=(8, -1.0), layers=[0, 1]) in configs
    assert MergeConfig(method="mame", threshold=0.9, layers=[0, 1]) in configs
    with pytest.raises(ValueError, match="`method` is 'tomme'; it takes one of 'tome', 'mame'"):
        Grid(methods=("tomme",)).configs()


def test_controls_cost_what_the_config_costs():
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(8))
    configs = [MergeConfig(r=16), MergeConfig(method="mame", threshold=0.8)]
    variants, notes = with_controls(job, configs)
    assert not notes
    rows = {row["name"]: row for row in evaluate(job, variants, batch_size=8).rows}
    for variant in (0, 3):
        merged, pruned, small_images = (rows[variants[variant + step].name] for step in range(3))
        assert pruned["control"] == "random_prune"
        assert pruned["tokens"] == pytest.approx(merged["tokens"], abs=1)
        assert small_images["control"] == "downsampled"
        assert small_images["config"]["r"] == 0
        assert small_images["gflops"] == pytest.approx(merged["gflops"], rel=0.15)


def test_a_config_that_merges_nothing_in_the_data_is_noted():
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(3))
    variants, notes = with_controls(job, [MergeConfig(method="mame", threshold=1.0), MergeConfig(r=8)])
    assert notes == ["method=mame,threshold=1.0 merges nothing in the 3 samples that it was tried on"]
    assert "r=8" in [variant.name for variant in variants]


def test_models_that_take_no_other_size_say_so(tmp_path):
    small.write_clip(tmp_path / "data" / "test" / "yoga" / "clip.mp4")
    model = small.videomae(tmp_path / "model")
    job = build_job("video-classification", JobOptions(str(model), str(tmp_path / "data")))
    variants, notes = with_controls(job, [MergeConfig(r=8)])
    assert [variant.control for variant in variants] == [None, "random_prune"]
    assert notes == ["no downsampled control: the inputs are not images cut into square patches"]


def test_sweep_writes_everything_and_is_only_read_again(swept, digit_folder, capsys):
    written = {file.name for file in swept.iterdir()}
    assert written == {".lock", "results.json", "report.md", "pareto.png", "samples.jsonl"}
    results = json.loads((swept / "results.json").read_text())
    assert [row.get("control") for row in results["rows"]][:4] == [None, None, "random_prune", "downsampled"]
    arguments = ["sweep", "--model", MODEL_DIR, "--data", digit_folder, "--r", "16", "--threshold", "0.8"]
    before = (swept / "samples.jsonl").read_bytes()
    assert run([*map(str, arguments), "--batch-size", "6", "--out", str(swept), "--format", "json"]) == 0
    assert (swept / "samples.jsonl").read_bytes() == before
    assert json.loads(capsys.readouterr().out)["rows"] == results["rows"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--r", "4,x"), "--r '4,x'"),
        (("--method", "tomme"), "`method` is 'tomme'; it takes one of 'tome'"),
        (("--layers", "5-2"), "--layers '5-2': 5-2 runs backwards; write 2-5"),
        (("--r", "0,8"), "r=0 of the grid merges nothing"),
    ],
)
def test_bad_grids_are_one_line(capsys, digit_folder, option, message):
    assert run(["sweep", "--model", str(MODEL_DIR), "--data", str(digit_folder), *option]) in (1, 2)
    assert message in capsys.readouterr().err


# Cards


def test_card_says_what_was_measured(swept, tmp_path, capsys):
    arguments = ["card", str(swept), "--config", "r=16", "--base-model", "me/digits", "--dataset", "me/data"]
    arguments += ["--force", "--license", "mit"]
    assert run([*arguments, "--out", str(tmp_path), "--push", "me/merged", "--dry-run"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert {line.split()[-1] for line in lines} == {"me/merged"}
    names = {line.split()[0] for line in lines}
    assert names == {"README.md", "merge_config.json", "results.json", "pareto.png", ".eval_results/me-data.yaml"}
    assert names == {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}

    row = json.loads((swept / "results.json").read_text())["rows"][1]
    card = ModelCard.load(tmp_path / "README.md")
    measured = {result.metric_name: result for result in card.data.eval_results}
    assert measured["top-1 accuracy"].metric_value == row["top1"]
    assert measured["top-5 accuracy"].metric_value == row["top5"]
    assert measured["top-1 accuracy"].metric_args == {"method": "tome", "r": 16}
    assert (card.data.base_model, card.data.datasets) == ("me/digits", ["me/data"])
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "image-classification")
    for text in (
        f"{row['drop']:.2f} points",
        "12 images of digits, split test",
        "![",
        'from_pretrained("me/merged")',
        "pip install",
    ):
        assert text in card.text
    card.save(tmp_path / "again.md")
    assert ModelCard.load(tmp_path / "again.md").data.to_dict() == card.data.to_dict()

    entries = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results" / "me-data.yaml").read_text()))
    assert {entry.task_id: entry.value for entry in entries} == {"top1": row["top1"], "top5": row["top5"]}
    assert MergeConfig.from_pretrained(tmp_path) == MergeConfig(r=16)


def test_card_has_the_day_of_the_measurement_and_no_speed_that_is_unknown(swept, tmp_path):
    results = results_card.read_results(swept)
    results.environment["date"] = "2020-02-02T02:02:02Z"
    row = {**results.rows[1], "speedup": None}
    *_, entries = results_card.write_results_card(results, row, tmp_path, dataset="me/data", force=True)
    found = parse_eval_result_entries(yaml.safe_load(entries.read_text()))
    assert {entry.date for entry in found} == {"2020-02-02"}
    card = (tmp_path / "README.md").read_text()
    assert "- measured on 2020-02-02" in card
    assert "the speed-up over" not in card
    del results.environment["date"]  # as in results of version 0.1.0
    *_, entries = results_card.write_results_card(results, row, tmp_path, dataset="me/data", force=True)
    assert "date" not in entries.read_text()


def test_card_of_a_local_folder_is_no_benchmark(swept, tmp_path, capsys):
    """12 images of a local folder went onto the Hub as ILSVRC/imagenet-1k with a top-5 accuracy of 100."""
    arguments = ["card", str(swept), "--config", "r=16", "--dataset", "ILSVRC/imagenet-1k", "--out", str(tmp_path)]
    assert run([*arguments, "--force"]) == 0
    assert (tmp_path / ".eval_results").is_dir()
    assert run(arguments) == 0
    assert not list(tmp_path.rglob("*.yaml"))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None
    assert card.data.datasets is None
    assert "model-index:" not in str(card)
    warning = card.text.strip().splitlines()[0]
    assert warning.startswith("> **These are no benchmark results.** The data are the local folder 'digits'")
    assert "12 images leave" in warning
    assert "no benchmark results: The data are the local folder 'digits'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "run", "samples", "dataset", "doubt"),
    [
        ("me/data", {"limit": None}, 20_000, "me/data", None),
        ("me/data", {"limit": 20_000, "seed": 0}, 20_000, "me/data", "Only 20000 images"),
        ("data", {"limit": None}, 20_000, "me/data", "the local folder 'data'.* only said, with --dataset"),
        ("data", {"limit": None}, 20_000, "data", "the local folder 'data'"),
        ("me/other", {"limit": None}, 20_000, "me/data", "The data are me/other, not me/data"),
        ("me/data", {"limit": None}, 100, "me/data", "100 images leave [0-9.]+ points of doubt about the accuracy"),
    ],
)
def test_what_must_not_be_published(swept, data, run, samples, dataset, doubt):
    results = results_card.read_results(swept)
    row = {**results.rows[1], "top1": 80.0, "drop": 0.5, "drop_low": 0.1, "drop_high": 0.9}
    results = replace(
        results,
        run={"task": "image-classification", **run},
        data={**results.data, "id": data, "num_samples": samples},
    )
    doubts = results_card.doubts_of_publishing(results, row, dataset)
    assert len(doubts) == (doubt is not None)
    assert doubt is None or re.search(doubt, doubts[0])
    wide = {**row, "drop_low": -23.0, "drop_high": 23.0}
    assert (
        "23.0 points of doubt about what merging costs"
        in results_card.doubts_of_publishing(results, wide, dataset)[-1]
    )


def test_the_snippet_of_a_card_runs(swept, digit_folder, tmp_path, capsys, monkeypatch):
    arguments = ["card", str(swept), "--config", "r=16", "--base-model", str(MODEL_DIR), "--out", str(tmp_path)]
    assert run([*arguments, "--push", str(tmp_path), "--dry-run"]) == 0
    shutil.copyfile(next(digit_folder.rglob("*.png")), tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)[1]
    capsys.readouterr()
    exec(code, {})
    assert "'label'" in capsys.readouterr().out


def test_two_rows_stand_in_front_of_a_card(swept, tmp_path):
    results = results_card.read_results(swept)
    results_card.write_results_card(results, results.rows[1], tmp_path)
    front, folded = (tmp_path / "README.md").read_text().split("<details>")
    assert sum(line.startswith("| ") for line in front.splitlines()) == 3  # the header, unmerged and the card's own
    assert sum(line.startswith("| ") for line in folded.splitlines()) == 1 + len(results.rows)


def test_card_needs_a_choice_and_results(swept, tmp_path, capsys):
    results = results_card.read_results(swept)
    with pytest.raises(ValueError, match=r"merge configs: r=16, method=mame,threshold=0\.8\. Choose .*--config"):
        results_card.choose_row(results, None)
    with pytest.raises(ValueError, match=r"no config 'r=3'; they have r=16"):
        results_card.choose_row(results, "r=3")
    with pytest.raises(ValueError, match="hold the unmerged model alone"):
        results_card.choose_row(replace(results, rows=results.rows[:1]), None)
    (tmp_path / "results.json").write_text("[]")
    assert run(["card", str(tmp_path)]) == 1
    assert "does not hold results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda values: values["environment"].pop("device"), r"environment\.device"),
        (lambda values: values["run"].clear(), r"run\.task"),
        (lambda values: values["data"].pop("skipped"), r"data\.skipped"),
        (lambda values: values["rows"].clear(), "a row"),
        (lambda values: values["rows"][1].pop("top1"), "top1 of the row 'r=16'"),
        (
            lambda values: [row.pop(key) for row in values["rows"] for key in ("top1", "agreement")],
            "the quality of the row 'unmerged'",
        ),
    ],
)
def test_card_of_results_that_are_not_whole(swept, tmp_path, change, missing):
    values = json.loads((swept / "results.json").read_text())
    change(values)
    (tmp_path / "results.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"does not hold whole results .*: {missing} is missing"):
        results_card.read_results(tmp_path)


# Benchmarks


@pytest.mark.parametrize("form", ["table", "csv", "md", "json"])
def test_bench(capsys, form):
    arguments = ["bench", "--model", str(MODEL_DIR), "--config", "r=16", "--batch-size", "2", "--rounds", "1"]
    assert run([*arguments, "--warmup", "0", "--format", form]) == 0
    printed = capsys.readouterr().out
    if form == "json":
        (row,) = json.loads(printed)["rows"]
        assert row["tokens"] == [257, 129]
    elif form == "csv":
        (row,) = csv.DictReader(printed.splitlines())
        assert (row.pop("config"), float(row["tokens_in"]), float(row["tokens"])) == ("r=16", 257, 129)
        assert float(row["speedup_low"]) <= float(row["speedup"]) <= float(row["speedup_high"])
        assert all(float(cell) > 0 for cell in row.values())
    else:
        assert "257 to 129" in printed


def test_bench_takes_the_tower_of_a_model_with_text(capsys, tmp_path):
    arguments = ["bench", "--model", str(small.dual(tmp_path)), "--config", "r=8", "--rounds", "1", "--warmup", "0"]
    assert run([*arguments, "--batch-size", "1", "--format", "csv"]) == 0
    assert "r=8,65.0,41.0" in capsys.readouterr().out


# Projected tokens


@pytest.fixture
def captions():
    model, processor = speaking.build()
    rows = [{"image": small.picture(seed), "captions": ["a photo of the cat"]} for seed in range(4)]
    return captioning_job(model, processor, rows, max_new_tokens=2)


def test_projected_tokens_are_swept_with_controls(captions):
    configs = Grid(r=(8,), thresholds=(0.5,), where="projected").configs()
    variants, notes = with_controls(captions, configs)
    assert not notes
    (r8, pruned_r8), (mame, pruned_mame) = variants[:2], variants[2:]
    assert [r8.name, pruned_r8.name] == ["r=8,where=projected", "method=random_prune,r=8,where=projected"]
    rows = {row["name"]: row for row in evaluate(captions, variants).rows}
    assert rows[r8.name]["tokens"] == rows[pruned_r8.name]["tokens"] == speaking.PATCHES - 8
    assert rows[mame.name]["tokens"] == pytest.approx(rows[pruned_mame.name]["tokens"], abs=1)


def test_the_command_line_sweeps_projected_tokens(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    small.picture().save(data / "0.png")
    (data / "test.jsonl").write_text(json.dumps({"image": "0.png", "captions": ["a photo"]}))
    arguments = ["sweep", "--task", "image-to-text", "--model", str(speaking.llava(tmp_path / "model"))]
    arguments += ["--data", str(data), "--method", "tome", "--r", "8", "--where", "projected"]
    assert run([*arguments, "--max-new-tokens", "2", "--out", str(tmp_path / "out"), "--format", "json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]][1] == "r=8,where=projected"

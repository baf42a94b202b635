"""`tune` finds the strongest merge within a target, and says so where there is none."""

import json

import pytest

from hf_tome import MergeConfig
from hf_tome.cli import run
from hf_tome.evaluation.digits import MODEL_DIR
from hf_tome.evaluation.imagenet import digits_classification
from hf_tome.evaluation.task import evaluate
from hf_tome.evaluation.tune import THRESHOLDS, Target, TuneError, _bisect, candidates, tune


@pytest.mark.parametrize("last", range(-1, 9))
def test_bisection_finds_the_last_one(last):
    tried = []

    def is_met(value):
        tried.append(value)
        return value <= last

    _bisect(range(9), is_met)
    assert max((value for value in tried if value <= last), default=-1) == last
    assert len(tried) <= 4


def test_candidates_go_from_mild_to_strong():
    job = digits_classification()
    rs = [config.r for config in candidates(job, "tome")]
    assert rs == list(range(1, 2 * 257 // 8 + 1))
    assert [config.threshold for config in candidates(job, "mame")] == sorted(THRESHOLDS, reverse=True)
    with pytest.raises(ValueError, match="Unknown method 'best'"):
        candidates(job, "best")


@pytest.mark.parametrize(
    ("target", "row", "met"),
    [
        (Target(max_drop=1), {"top1": 89, "agreement": 50, "drop_high": 5}, True),
        (Target(max_drop=1), {"top1": 88.9, "agreement": 99, "drop_high": 5}, False),
        (Target(max_drop=1, sure=True), {"top1": 89.5, "agreement": 99, "drop_high": 1.1}, False),
        (Target(max_drop=1, min_agreement=95), {"top1": 90, "agreement": 94, "drop_high": 0}, False),
        (Target(max_drop=1), {"map": 91, "top1": 20, "agreement": 94}, True),
    ],
)
def test_targets(target, row, met):
    assert target.met(row, {"top1": 90, "map": 92, "agreement": 100}) is met


def test_the_chosen_config_is_the_strongest_within_the_target(tmp_path):
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(40))
    target = Target(max_drop=100, min_agreement=97)
    chosen, results = tune(job, ["tome"], target, out=tmp_path, by="gflops", batch_size=20)
    unmerged, merged, stronger = evaluate(job, [chosen, MergeConfig(r=chosen.r + 1)], batch_size=20).rows
    assert target.met(merged, unmerged)
    assert not target.met(stronger, unmerged)
    assert chosen.r > 1
    # Only what was timed in turns has a speed.
    timed = [row["name"] for row in results.rows if row["speedup"] is not None]
    assert sorted(timed) == sorted(["unmerged", f"r={chosen.r}"])
    # Every sample is in the file: the same call again runs nothing.
    size = (tmp_path / "samples.jsonl").stat().st_size
    assert tune(job, ["tome"], target, out=tmp_path, by="gflops", batch_size=20)[0] == chosen
    assert (tmp_path / "samples.jsonl").stat().st_size == size


def test_no_config_within_the_target(tmp_path):
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(8))
    with pytest.raises(TuneError, match=r"No config loses at most -200 points; the nearest, .* loses "):
        tune(job, ["mame"], Target(max_drop=-200), out=tmp_path)
    with pytest.raises(ValueError, match="Unknown criterion 'taste'"):
        tune(job, out=tmp_path, by="taste")
    with pytest.raises(ValueError, match="least agreement is 120"):
        Target(min_agreement=120)


def test_command(digit_folder, tmp_path, capsys):
    out = tmp_path / "tuned"
    arguments = ["tune", "--model", str(MODEL_DIR), "--data", str(digit_folder), "--method", "mame", "--by", "gflops"]
    assert run([*arguments, "--batch-size", "6", "--out", str(out), "--format", "json"]) == 0
    printed = capsys.readouterr()
    assert "merge_config.json" in printed.err
    rows = json.loads(printed.out)["rows"]
    chosen = MergeConfig.from_pretrained(out)
    assert f"method=mame,threshold={chosen.threshold:g}" in [row["name"] for row in rows]
    assert (out / "pareto.png").is_file()

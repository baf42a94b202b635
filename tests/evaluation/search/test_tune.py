"""`tune` finds the strongest merge within a target, and says so where there is none."""

import pytest
import small

from hf_tome import MergeConfig
from hf_tome.evaluation.metrics.bootstrap import unchanged_bound
from hf_tome.evaluation.options import JobOptions
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.search import tune as tuning
from hf_tome.evaluation.search.tune import Target, TuneError, _bisect, candidates, samples_needed, tune
from hf_tome.evaluation.tasks.classification.image_classification import digits_classification
from hf_tome.evaluation.tasks.registry import build_job
from hf_tome.inspection.flops import token_counts
from hf_tome.merging.methods import METHODS


def make(folder):
    folder.mkdir(parents=True)
    return folder


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
    paths = {tuple(token_counts(257, 1, [r] * 8)) for r in rs}
    assert len(paths) == len(rs)
    assert [config.threshold for config in candidates(job, "mame")] == list(METHODS["mame"].search_values)
    with pytest.raises(ValueError, match="`method` is 'best'; it takes one of 'tome'"):
        candidates(job, "best")


@pytest.mark.parametrize(
    ("target", "row", "met"),
    [
        (Target(max_drop=1, sure=False), {"top1": 89, "agreement": 50, "drop_high": 5}, True),
        (Target(max_drop=1, sure=False), {"top1": 88.9, "agreement": 99, "drop_high": 5}, False),
        (Target(max_drop=1, sure=True), {"top1": 89.5, "agreement": 99, "drop_high": 1.1}, False),
        (Target(max_drop=1, min_agreement=95), {"top1": 90, "agreement": 94, "drop_high": 0}, False),
        (Target(max_drop=1, sure=False), {"map": 91, "top1": 20, "agreement": 94}, True),
        (Target(max_drop=1, sure=True), {"map": 91.5, "top1": 90, "agreement": 94, "drop_high": 1.1}, False),
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
    # Only interleaved runs give a speed.
    timed = [row["name"] for row in results.rows if row["speedup"] is not None]
    assert sorted(timed) == sorted(["unmerged", f"r={chosen.r}"])
    # Every sample is in the file: the same call again runs nothing.
    size = (tmp_path / "samples.jsonl").stat().st_size
    assert tune(job, ["tome"], target, out=tmp_path, by="gflops", batch_size=20)[0] == chosen
    assert (tmp_path / "samples.jsonl").stat().st_size == size


def test_no_config_within_the_target(tmp_path, monkeypatch):
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(8))
    monkeypatch.setattr(Target, "met", lambda *_: False)
    with pytest.raises(TuneError, match=r"No config loses at most 0 points; the nearest, .* loses ") as caught:
        tune(job, ["mame"], Target(max_drop=0, sure=False), out=tmp_path)
    assert len(caught.value.results.rows) > 2
    with pytest.raises(ValueError, match="Unknown criterion 'taste'"):
        tune(job, out=tmp_path, by="taste")
    with pytest.raises(ValueError, match="least agreement is 120"):
        Target(min_agreement=120)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="takes a number of at least 0"):
            Target(max_drop=wrong)
    with pytest.raises(ValueError, match="no interval"):
        Target(sure=True).drop({"top1": 90, "agreement": 100}, {"top1": 90})


def test_a_larger_r_that_leaves_the_same_tokens_is_no_candidate(tmp_path):
    """65 tokens in 3 blocks: at most 32 of the first one's can merge, and twice a third of 65 is 43."""
    model = small.vit(tmp_path / "model")
    small.picture().save(make(tmp_path / "data" / "test" / "cat") / "0.png")
    job = build_job("image-classification", JobOptions(str(model), str(tmp_path / "data")))
    assert [config.r for config in candidates(job, "tome")] == list(range(1, 33))


@pytest.mark.parametrize(
    ("speeds", "chosen", "says"),
    [
        ({1: 1.1, 2: 1.3, 3: 1.2}, 2, "chosen by the measured speed-up among the 3"),
        ({1: 0.9, 2: 0.8, 3: 0.7}, 1, "it runs 0.90 times as fast as the unmerged model on this machine"),
    ],
)
def test_the_fastest_within_the_target_is_chosen_and_a_slow_one_said(tmp_path, monkeypatch, speeds, chosen, says):
    """Where the strongest is not the fastest, a milder one is; where none beats unmerged, the note says so."""
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(4))
    monkeypatch.setattr(tuning, "candidates", lambda *_: [MergeConfig(r=r) for r in speeds])
    monkeypatch.setattr(tuning, "_bisect", lambda configs, is_met: [is_met(config) for config in configs])

    def time(job, configs, results, batch_size):
        for row in results.rows:
            row["speedup"] = speeds.get(row["config"]["r"], 1.0)

    monkeypatch.setattr(tuning, "_time", time)
    config, results = tune(job, ["tome"], Target(max_drop=100), out=tmp_path)
    assert config.r == chosen
    assert says in results.run["notes"][0]
    assert ("no faster" in results.run["notes"][0]) == (speeds[chosen] <= 1)


def test_too_few_samples_are_an_error_that_says_how_many(tmp_path):
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(12))
    with pytest.raises(ValueError, match=r"12 samples are too few .* 1 points: .* reaches 26\.46 .* at least 368"):
        tune(job, ["tome"], Target(max_drop=1), out=tmp_path)
    with pytest.raises(ValueError, match="No number of samples makes sure of a drop of 0 points"):
        tune(job, ["tome"], Target(max_drop=0), out=tmp_path)
    assert samples_needed(1) == 368
    assert unchanged_bound(368) <= 1 < unchanged_bound(367)

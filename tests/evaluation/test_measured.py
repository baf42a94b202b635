"""Measurements that cannot mislead: paired rounds, warnings, models as they came, inputs that do not fit."""

import logging
import statistics

import pytest
import torch

from hf_tome import MergeConfig, apply, get_config, is_merged
from hf_tome.evaluation.data.splits import DataError
from hf_tome.evaluation.reporting.tables import to_markdown, to_table
from hf_tome.evaluation.running import loop as loops
from hf_tome.evaluation.running.batches import rows_are_samples
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.search.sweep import with_controls
from hf_tome.evaluation.store.speed import doubtful_speeds, speed
from hf_tome.evaluation.tasks.classification.image_classification import digits_classification
from hf_tome.profiling import rounds as timing

R16 = MergeConfig(r=16)


@pytest.fixture
def job():
    found = digits_classification()
    found.data.rows = found.data.rows.select(range(8))
    return found


# Speeds


def test_speeds_are_of_paired_rounds():
    """A machine that becomes ten times slower between rounds changes no speed-up."""
    rounds = {
        ("s", 0, 0): {"unmerged": 3.0, "r=8": 2.0},
        ("s", 4, 0): {"unmerged": 30.0, "r=8": 15.0},
        ("s", 8, 0): {"unmerged": 3.0, "r=8": 1.0},
        ("t", 0, 0): {"r=8": 0.001},  # without the unmerged model in the same round it says nothing
    }
    columns = speed(rounds, "r=8")
    assert (columns["speedup_low"], columns["speedup"], columns["speedup_high"]) == (1.75, 2.0, 2.5)
    assert columns["samples_per_second"] == pytest.approx(columns["speedup"] / 3.0)
    assert set(speed(rounds, "r=9").values()) == {None}


def test_every_evaluation_has_enough_rounds_and_its_columns_agree(job, tmp_path):
    results = evaluate(job, [R16], batch_size=8, out=tmp_path)
    unmerged, merged = results.rows
    assert (tmp_path / "samples.jsonl").read_text().count('"round"') == loops.ROUNDS
    assert merged["samples_per_second"] == pytest.approx(unmerged["samples_per_second"] * merged["speedup"])
    assert merged["speedup_low"] <= merged["speedup"] <= merged["speedup_high"]
    assert results.run["clock"] == "process"
    assert f"{merged['speedup']:.2f} ({merged['speedup_low']:.2f} to" in to_markdown(results)


def test_variants_alternate_within_a_batch(job):
    order, run = [], job.run

    def watched(model, inputs):
        order.append(is_merged(model))
        return run(model, inputs)

    job.run = watched
    evaluate(job, [R16], batch_size=2, speedups=False)
    # Warm-up, memory and tokens come first; of four batches every other one begins with the merged model.
    assert order[-4:] == [False, True, True, False]


def test_a_loaded_machine_and_doubtful_speeds_are_warnings(job, monkeypatch):
    monkeypatch.setattr("hf_tome.evaluation.store.run_store.load_average", lambda: 99.0)
    results = evaluate(job, [R16], batch_size=8)
    assert "the load of the machine (99.0) exceeds" in results.run["warnings"][0]
    assert "warning: the load of the machine" in to_table(results)
    fast = {**results.rows[1], "speedup": 40.0, "speedup_low": 39.0, "speedup_high": 41.0}
    assert "more than its multiply-adds allow" in next(doubtful_speeds([results.rows[0], fast]))


def test_processor_time_is_not_disturbed_by_waiting(monkeypatch):
    import time

    assert timing.time_once(lambda: time.sleep(0.2), "process", torch.device("cpu")) < 0.1
    assert timing.time_once(lambda: time.sleep(0.2), "wall", torch.device("cpu")) >= 0.2


# The model as it came


@pytest.mark.parametrize("measure", [lambda job: evaluate(job, [R16]), lambda job: with_controls(job, [R16])])
def test_a_model_is_given_back_as_it_came(job, measure, caplog):
    apply(job.model, MergeConfig(r=5))
    job.model.train()
    frozen = job.model.classifier.eval()
    with caplog.at_level(logging.WARNING):
        found = measure(job)
    assert get_config(job.model) == MergeConfig(r=5)
    assert job.model.training
    assert not frozen.training
    assert "was merged (r=5)" in caplog.text
    assert "was in training mode" in caplog.text
    notes = found[1] if isinstance(found, tuple) else found.run["notes"]
    assert any("was merged (r=5)" in note for note in notes)


def test_dropout_and_an_earlier_merge_change_no_result(job):
    expected = evaluate(job, [R16]).rows
    apply(job.model, MergeConfig(r=100))
    job.model.config.hidden_dropout_prob = 0.5
    for module in job.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    job.model.train()
    rows = evaluate(job, [R16]).rows
    assert [(row["top1"], row["tokens"]) for row in rows] == [(row["top1"], row["tokens"]) for row in expected]


def test_a_model_is_given_back_after_an_error(job):
    apply(job.model, MergeConfig(r=5))
    job.model.train()
    job.run = None
    with pytest.raises(TypeError):
        evaluate(job, [R16])
    assert job.model.training
    assert get_config(job.model) == MergeConfig(r=5)


# Batches


def test_a_batch_of_unequal_rows_is_never_divided(job):
    """What one batch taught about memory was applied to batches whose rows are no samples, silently wrong."""
    prepare, run, sizes = job.prepare, job.run, []

    def with_tiles(samples):
        inputs = prepare(samples)
        first = samples[0].position == 0
        return inputs if first else {**inputs, "tiles": torch.zeros(9)}

    def small_gpu(model, inputs):
        inputs = dict(inputs)
        tiles = inputs.pop("tiles", None)
        sizes.append((len(inputs["pixel_values"]), None if tiles is None else len(tiles)))
        if tiles is None and len(inputs["pixel_values"]) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return run(model, inputs)

    job.prepare, job.run = with_tiles, small_gpu
    assert evaluate(job, [R16], batch_size=4).data["num_samples"] == 8
    assert (2, None) in sizes  # the first batch was halved
    assert {size for size, tiles in sizes if tiles} == {4}


def test_what_is_divided():
    assert rows_are_samples({"x": torch.zeros(4, 2), "flag": True}, 4)
    assert not rows_are_samples({"x": torch.zeros(4, 2), "y": torch.zeros(9)}, 4)
    assert not rows_are_samples({"x": torch.zeros(9)}, 4)
    assert not rows_are_samples({"x": [torch.zeros(4)]}, 4)


def test_a_batch_that_cannot_be_divided_says_what_to_do(job):
    prepare = job.prepare
    job.prepare = lambda samples: {**prepare(samples), "tiles": torch.zeros(9)}

    def full(model, inputs):
        raise torch.OutOfMemoryError("out of memory")

    job.run = full
    with pytest.raises(torch.OutOfMemoryError, match=r"batch of 4, which cannot be divided.*--batch-size below 4"):
        evaluate(job, [R16], batch_size=4)


def test_inputs_that_are_no_tensors_are_named(job):
    prepare = job.prepare
    job.prepare = lambda samples: {name: value.numpy() for name, value in prepare(samples).items()}
    with pytest.raises(DataError, match=r"'pixel_values' is of type ndarray; it takes tensors.*return_tensors='pt'"):
        evaluate(job, [R16], batch_size=4)


def test_flags_and_lists_of_tensors_go_to_the_model(job):
    prepare, run, seen = job.prepare, job.run, []
    job.prepare = lambda samples: {**prepare(samples), "flag": True, "parts": [torch.zeros(1), torch.zeros(2)]}

    def watched(model, inputs):
        seen.append((inputs.pop("flag"), len(inputs.pop("parts"))))
        return run(model, inputs)

    job.run = lambda model, inputs: watched(model, dict(inputs))
    evaluate(job, [R16], batch_size=4)
    assert set(seen) == {(True, 2)}
    assert statistics.mean(count for _, count in seen) == 2

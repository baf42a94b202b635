"""Tuning to a budget: schedules that cost what they may, an objective without labels, a search that resumes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import small
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hf_tome
from hf_tome import MergeConfig
from hf_tome.cli.app import run
from hf_tome.evaluation.data.digits import MODEL_DIR
from hf_tome.evaluation.running.batches import prepare
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.search.budget import budget as budget_module
from hf_tome.evaluation.search.budget.budget import Budget, tune_to_budget
from hf_tome.evaluation.search.budget.front import CONSTANT, MAME, START
from hf_tome.evaluation.search.budget.objective import DISTRIBUTIONS, divergence, label_divergence
from hf_tome.evaluation.search.budget.paired import break_even, mixed_values, samples_to_tell, share_of_slower
from hf_tome.evaluation.search.budget.samples import split_samples
from hf_tome.evaluation.search.budget.spaces.costs import Costs
from hf_tome.evaluation.search.budget.spaces.schedules import FLOOR, constant, decreasing, fit, peaked, scaled
from hf_tome.evaluation.search.budget.spaces.space import Space
from hf_tome.evaluation.search.budget.timing import share_for
from hf_tome.evaluation.search.budget.trials import FILE, Trial, Trials
from hf_tome.evaluation.search.budget.tuning_run import TuningRun
from hf_tome.evaluation.search.tuning import forget
from hf_tome.evaluation.store.results import Results
from hf_tome.evaluation.tasks.classification.image_classification import digits_classification
from hf_tome.evaluation.variants import Variant, as_variants

QUICK = {"choose": 8, "confirm": 8, "max_evaluations": 6, "batch_size": 8, "controls": ("gflops",), "front": (0.7,)}


def digits():
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(24))
    return job


@settings(deadline=None, derandomize=True, database=None)
@example(6, 0.0, 1.0, 1.5)  # the parts add up to less than 1.5 in floating point
@given(st.integers(1, 40), st.floats(0, 1), st.floats(0.05, 1), st.floats(0, 500))
def test_schedules_sum_to_their_total_and_peak_where_they_should(num_layers, centre, width, total):
    weights = peaked(num_layers, centre, width)
    assert min(weights) >= FLOOR
    assert abs(weights.index(max(weights)) - centre * (num_layers - 1)) <= 0.5 + 1e-9
    numbers = scaled(weights, total)
    assert sum(numbers) == round(total)
    assert min(numbers) >= 0


def test_a_schedule_is_the_mildest_within_the_budget():
    fits = fit([1, 2, 1], lambda r: 100 - sum(r), 60, 200)
    assert sum(fits) == 40
    assert fits == [10, 20, 10]
    assert fit([1, 2, 1], lambda r: 100 - sum(r), -1000, 200) is None
    assert sum(constant(4)) == 4
    assert decreasing(3) == [2, 1, 0]


@pytest.mark.parametrize("settings", [START, CONSTANT, MAME, replace(START, centre=0.9, width=0.2)])
def test_variants_cost_what_report_says_and_no_more_than_they_may(settings):
    job = digits()
    space = Space(Costs.of(job.model))
    for budget in (0.9, 0.6, 0.4):
        variant = space.variant(settings, budget)
        report = hf_tome.report(hf_tome.apply(job.model, variant.config)).towers[0]
        assert space.costs.gflops(variant.config) == pytest.approx(report.gflops)
        assert report.gflops_unmerged == pytest.approx(space.costs.unmerged)
        assert report.gflops <= budget * space.costs.unmerged
        if budget < 0.8:  # what the last block alone saves may be more than a large budget asks for
            assert report.gflops > (budget - 0.03) * space.costs.unmerged
    hf_tome.remove(job.model)
    assert space.variant(settings, 0.01) is None


@pytest.mark.parametrize("kind", ["logits", "independent"])
def test_the_divergence_is_0_for_equals_and_1_at_most(kind):
    same, other = torch.tensor([[60.0, -60.0]]), torch.tensor([[-60.0, 60.0]])
    p, q = DISTRIBUTIONS[kind](same), DISTRIBUTIONS[kind](other)
    assert divergence(p, p, kind).tolist() == [0]
    assert divergence(p, q, kind).tolist() == pytest.approx([1])
    some = DISTRIBUTIONS[kind](torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(divergence(some, some.flip(0), kind), divergence(some.flip(0), some, kind))


def test_divergences_of_embeddings_scores_and_labels():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert divergence(x.double(), -x.double(), "embeddings").tolist() == [1, 1]
    ranked = DISTRIBUTIONS["scores"](torch.tensor([[0.9, 0.1]]))  # odds of 81 to 1
    assert ranked[0, 0] == pytest.approx(81 / 82)
    p = DISTRIBUTIONS["logits"](torch.tensor([[99.0, 0.0], [99.0, 0.0], [99.0, 0.0]]))
    found, has_label = label_divergence([0, 1, None], p, "logits")
    assert found.tolist() == pytest.approx([0, 1, 0])
    assert has_label.tolist() == [True, True, False]


def test_samples_never_overlap():
    data = digits().data
    chosen, others = split_samples(data, 10, None, seed=3)
    assert sorted([*chosen.positions, *others.positions]) == list(range(24))
    assert len(chosen) == 10
    assert [sample.position for sample in chosen] == list(range(10))
    assert [info.name for info in chosen.listed()] == [sample.name for sample in chosen]
    assert split_samples(data, 10, None, seed=3)[0].positions == chosen.positions
    data.rows = data.rows.select(range(15))
    with pytest.raises(ValueError, match="has 15 samples; tuning takes 16 at the least"):
        split_samples(data, 10, None, seed=3)


def test_tune_chooses_confirms_and_resumes(tmp_path):
    job, names = digits(), []
    config, results = tune_to_budget(
        job, Budget(0.5), out=tmp_path, on_trial=lambda done, total, name: names.append(name), **QUICK
    )
    tuned = results.run["tuned"]
    assert results.data["num_samples"] == 8
    assert tuned["evaluations"] == 6
    assert tuned["config"] == hf_tome.config.format_config(config)
    row = next(row for row in results.rows if row["name"] == tuned["name"])
    assert row["gflops"] <= 0.5 * results.rows[0]["gflops"]
    controls = {row.get("control") for row in results.rows}
    assert {"decreasing ToMe", "MaMe", "random pruning", "smaller images"} <= controls
    assert "ended by its number of evaluations" in str(results.run["notes"])
    assert any("do not tell the choice" in note for note in results.run["notes"]) or tuned["name"].startswith("r=")
    size = (tmp_path / FILE).stat().st_size
    names.clear()
    again, _ = tune_to_budget(job, Budget(0.5), out=tmp_path, on_trial=lambda *seen: names.append(seen[2]), **QUICK)
    assert again == config
    assert names == ["unmerged"], "the reference runs again, and nothing else"
    assert (tmp_path / FILE).stat().st_size == size
    with pytest.raises(ValueError, match="holds trials of another run"):
        tune_to_budget(job, Budget(0.5), out=tmp_path, seed=1, **QUICK)


class Counting:
    """A job's run, counted."""

    def __init__(self, run):
        self.run, self.calls = run, 0

    def __call__(self, model, inputs):
        self.calls += 1
        return self.run(model, inputs)


@pytest.mark.parametrize("torn", ["header", "trial"])
def test_trials_that_a_kill_cut_short_are_lost_alone(tmp_path, torn):
    def trials():
        job = digits()
        job.run = Counting(job.run)
        batch, _ = prepare(job, list(job.data)[:8])
        made = Trials(job, [batch], {"seed": 0}, 9, folder=tmp_path, use_labels=False)
        made.start()
        return made, job

    _, first, second = as_variants([MergeConfig(r=4), MergeConfig(r=8)])
    made, _ = trials()
    made.run(first)
    lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
    (tmp_path / FILE).write_text(lines[0][:-9] if torn == "header" else lines[0] + lines[1][:-9])
    made, _ = trials()
    made.run(second)
    made, job = trials()
    calls = job.run.calls
    made.run(second)  # known, though its line follows one that was cut short
    assert job.run.calls == calls
    made.run(first)
    assert job.run.calls > calls


def test_smaller_images_are_compared_with_a_mean_over_sizes():
    job = digits()
    _, results = tune_to_budget(job, Budget(0.6), image_size="free", **{**QUICK, "max_evaluations": 30})
    tried = [trial["name"] for trial in results.run["tuned"]["trials"]]
    assert any("px, r=" in name for name in tried)


def test_a_largest_drop_is_held_on_the_confirming_samples():
    options = {**QUICK, "max_evaluations": 4, "methods": ["tome"], "front": (0.5,)}
    config, _ = tune_to_budget(digits(), Budget(max_drop=100), **options)
    assert config.r
    config, results = tune_to_budget(digits(), Budget(max_drop=0), **options)
    assert config == MergeConfig(), "8 samples are sure of nothing"
    assert results.run["tuned"]["name"] == "unmerged"
    note = next(note for note in results.run["notes"] if "nothing of the front" in note)
    assert "agrees on" in note
    assert "so many are sure of 36.94 points alone" in note
    config, _ = tune_to_budget(digits(), Budget(max_drop=100, min_agreement=100, sure=False), **options)
    rows = {row["name"]: row for row in results.rows}
    assert config == MergeConfig() or rows[hf_tome.config.format_config(config)]["agreement"] == 100


def test_controls_at_equal_time_start_from_what_they_cost(monkeypatch):
    """Images come in a few sizes, none of which need cost as much as the choice."""
    monkeypatch.setattr(TuningRun, "seconds", lambda self, variants: dict.fromkeys(variants, 0.5))
    job = digits()
    options = {**QUICK, "controls": ("gflops", "time"), "against": ["constant ToMe"], "methods": ["tome"]}
    _, results = tune_to_budget(job, Budget(0.6), **options)
    rows = results.run["tuned"]["rows"]
    assert rows["unmerged, exact last block"] == "unmerged, exact last block"
    assert rows["constant ToMe"].startswith("r=")
    assert "constant ToMe, equal time" not in rows, "it takes as long as the choice already"
    note = next(note for note in results.run["notes"] if note.startswith("merging pays"))
    assert note.startswith("merging pays nowhere on the front: the unmerged model with its exact last block takes 0.5")


def timed_by_gflops(*args, **kwargs):
    """Evaluate, and let every row be as fast as its GFLOPs allow."""
    results = evaluate(*args, **kwargs)
    for row in results.rows:
        row |= dict.fromkeys(("speedup", "speedup_low", "speedup_high"), results.rows[0]["gflops"] / row["gflops"])
    return results


def test_a_mix_of_two_image_sizes_takes_exactly_as_long_as_the_choice(monkeypatch, tmp_path):
    monkeypatch.setattr(budget_module, "evaluate", timed_by_gflops)
    monkeypatch.setattr(
        TuningRun, "seconds", lambda self, variants: {name: self.space.share(each) for name, each in variants.items()}
    )
    options = {**QUICK, "controls": ("gflops", "time"), "against": ["smaller images"], "methods": ["tome"]}
    _, results = tune_to_budget(digits(), Budget(0.6), out=tmp_path, **options)
    tuned, rows = results.run["tuned"], {row["name"]: row for row in results.rows}
    mix, choice = rows[tuned["rows"]["smaller images, mixed to equal time"]], rows[tuned["name"]]
    assert mix["speedup"] == pytest.approx(choice["speedup"])
    sizes = [row for row in results.rows if row.get("control") == "smaller images"]
    faster, slower = sorted(sizes, key=lambda row: -row["speedup"])[:2]
    assert faster["speedup"] >= mix["speedup"] >= slower["speedup"]
    assert min(faster["top1"], slower["top1"]) <= mix["top1"] <= max(faster["top1"], slower["top1"])
    gains = tuned["gains"]["smaller images, mixed to equal time"]
    assert gains["points"][0] == pytest.approx(choice["top1"] - mix["top1"])
    assert gains["agreement"][0] == pytest.approx(choice["agreement"] - mix["agreement"])
    assert gains["points"][1] <= gains["points"][0] <= gains["points"][2]
    exact = rows["unmerged, exact last block"]
    assert exact["agreement"] == 100
    assert 0.8 < exact["gflops"] / results.rows[0]["gflops"] < 1
    assert json.loads(json.dumps(Results.from_dict(results.to_dict()).rows)) == results.rows
    _, again = tune_to_budget(digits(), Budget(0.6), out=tmp_path, **options)
    assert again.run["tuned"]["rows"] == tuned["rows"]


def test_the_mean_of_a_mix():
    values = {"top1": np.array([100.0, 0.0, 0.0, 100.0])}, {"top1": np.array([100.0, 100.0, 0.0, 0.0])}
    assert share_of_slower(0.6, 0.5, 0.9) == pytest.approx(0.25)
    assert share_of_slower(1.0, 0.5, 0.9) == 1
    assert mixed_values(*values, 0.25)["top1"].tolist() == [100, 25, 0, 75]


def test_the_cost_for_a_time_stays_between_what_was_measured():
    assert share_for(0.6, [(1.0, 1.0), (0.6, 0.7)]) == pytest.approx(0.6 - 0.1 / 0.75)
    assert share_for(0.6, [(1.0, 1.0), (0.6, 0.7), (0.4, 0.5)]) == pytest.approx(0.5)
    assert share_for(0.6, [(1.0, 1.0), (0.5, 0.55)]) == pytest.approx(0.5 + 0.5 * 0.05 / 0.45)
    assert share_for(0.6, [(1.0, 1.0), (0.6, 0.62), (0.59, 0.5)]) == pytest.approx(0.59 + 0.01 / 0.12 * 0.1)
    assert share_for(0.6, [(1.0, 1.0), (0.8, 1.2)]) == pytest.approx(0.4)


def test_break_even_is_where_the_front_begins_to_be_faster():
    front = [(0.9, 1.0), (0.7, 0.8), (0.5, 0.6)]
    assert break_even(front, 0.95) == pytest.approx(0.85)
    assert break_even(front, 1.1) == 0.9
    assert break_even(front, 0.5) is None


def test_a_budget_of_time_is_met_where_time_goes_with_the_cost(monkeypatch, tmp_path):
    """However much of the time merging itself takes; a run that resumes keeps its choice, whatever it would time."""
    slower = [0.1]

    def seconds(self, variants):
        return {name: slower[0] + self.space.share(variant) for name, variant in variants.items()}

    monkeypatch.setattr(TuningRun, "seconds", seconds)
    options = {**QUICK, "methods": ["tome"], "max_evaluations": 3, "out": tmp_path}
    config, results = tune_to_budget(digits(), Budget(0.7, by="time"), **options)
    assert results.run["tuned"]["by"] == "time"
    gflops = next(row["gflops"] for row in results.rows if row["name"] == results.run["tuned"]["name"])
    assert 0.97 * 0.7 <= 0.1 + gflops / results.rows[0]["gflops"] <= 0.7
    slower[0] = 0.2
    assert tune_to_budget(digits(), Budget(0.7, by="time"), **options)[0] == config
    forget(tmp_path)
    assert tune_to_budget(digits(), Budget(0.7, by="time"), **{**options, "out": None})[0] != config
    assert not list(tmp_path.glob("*.json*"))
    slower[0] = 1.0
    _, results = tune_to_budget(digits(), Budget(0.7, by="time"), **{**options, "out": None})
    assert any("the budget of 0.7 of the time is not met" in note for note in results.run["notes"])


def test_the_front_is_nowhere_worse_than_the_constant_schedule():
    job = digits()
    options = {**QUICK, "max_evaluations": 45, "controls": (), "front": (0.9, 0.7, 0.4)}
    _, results = tune_to_budget(job, Budget(0.5), **options)
    tuned, space = results.run["tuned"], Space(Costs.of(job.model))
    losses = {trial["name"]: trial["divergence"] for trial in tuned["trials"]}
    assert [point["budget"] for point in tuned["front"]] == [0.9, 0.7, 0.5, 0.4]
    for point in tuned["front"]:
        assert point["divergence"] <= losses[space.variant(CONSTANT, point["budget"]).name]


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_wrong_budgets(share):
    with pytest.raises(ValueError, match=r"`budget` is .*; it takes a share"):
        Budget(share)
    with pytest.raises(ValueError, match="`by` is 'taste'"):
        Budget(by="taste")
    with pytest.raises(ValueError, match="`min_agreement` is 120; it takes a percentage"):
        Budget(max_drop=1, min_agreement=120)
    with pytest.raises(ValueError, match="`min_agreement` holds beside a `max_drop`"):
        Budget(min_agreement=90)
    with pytest.raises(ValueError, match="`max_drop` is nan"):
        Budget(max_drop=float("nan"))


def test_what_a_call_asks_for():
    assert Budget.of() == Budget(0.5)
    assert Budget.of(0.7, by="time") == Budget(0.7, by="time")
    assert Budget.of(max_drop=1, min_agreement=90) == Budget(max_drop=1, min_agreement=90)
    assert Budget.of(min_agreement=90) == Budget(max_drop=100, min_agreement=90)
    with pytest.raises(ValueError, match="both a `budget`"):
        Budget.of(0.5, max_drop=1)
    with pytest.raises(ValueError, match="`min_agreement` holds beside a `max_drop`"):
        Budget.of(0.5, min_agreement=90)


def test_what_cannot_be_tuned(tmp_path):
    job = digits()
    with pytest.raises(ValueError, match=r"`time_limit` is 0 s, but the unmerged model took .* give at least"):
        tune_to_budget(job, Budget(), time_limit=0, **QUICK)
    with pytest.raises(ValueError, match=r"No config of tome is within 0\.01"):
        tune_to_budget(job, Budget(0.01), methods=["tome"], **{**QUICK, "front": ()})
    one = [job.data.rows[0]] * 24
    job.data.rows = one
    with pytest.raises(ValueError, match="are all alike"):
        tune_to_budget(job, Budget(), **QUICK)
    with pytest.raises(ValueError, match="both a `budget`"):
        hf_tome.tune("x", "y", budget=0.5, max_drop=1)


def test_samples_that_cannot_tell():
    one, other = torch.linspace(0, 1, 20).numpy(), torch.linspace(1, 0, 20).numpy() + 0.01
    trials = [Trial(Variant(""), values, None, 0) for values in (one, other)]
    assert samples_to_tell(*trials) > 1000
    assert samples_to_tell(trials[0], Trial(Variant(""), one + 1, None, 0)) is None


def test_images_without_labels_in_python(tmp_path):
    model = small.vit(tmp_path / "model")
    for number in range(16):
        small.picture(number).save(tmp_path / f"{number}.png")
    options = {key: value for key, value in QUICK.items() if key != "controls"}
    config, results = hf_tome.tune(
        str(model), str(tmp_path), budget=0.8, out=tmp_path / "tuned", by_block=True, **options
    )
    assert len(results.run["tuned"]["sensitivities"]) == 3
    assert (tmp_path / "tuned" / "blocks.png").is_file()
    assert MergeConfig.from_pretrained(tmp_path / "tuned") == config
    assert "agreement" in results.rows[0]
    assert "top1" not in results.rows[0]
    assert any("tuned without labels" in note for note in results.run["notes"])
    assert (tmp_path / "tuned" / "front.md").is_file()


def test_a_data_set_in_memory_and_a_tower_without_a_head(tmp_path):
    """What a tower gives are embeddings, compared by their cosine."""
    import datasets
    from transformers import ViTModel

    tower = ViTModel.from_pretrained(small.vit(tmp_path / "model"), add_pooling_layer=False).eval()
    rows = datasets.Dataset.from_dict({"image": [small.picture(number) for number in range(16)]})
    options = {key: value for key, value in QUICK.items() if key != "controls"}
    config, results = hf_tome.tune(tower, rows, budget=0.8, processor=small.image_processor(), **options)
    assert config.r
    assert results.rows[1]["agreement"] > 50
    assert not hf_tome.is_merged(tower)


def test_command(digit_folder, tmp_path, capsys):
    arguments = ["tune", "--model", str(MODEL_DIR), "--budget", "0.6", "--choose", "8", "--batch-size", "8"]
    assert run([*arguments, "--data", str(digit_folder), "--out", str(tmp_path / "few")]) == 1
    assert "has 12 samples; tuning takes 16 at the least" in capsys.readouterr().err
    for number in range(16):
        small.picture(number).save(tmp_path / f"{number}.png")
    out = tmp_path / "tuned"
    limited = [*arguments, "--time-limit", "1.5", "--method", "tome", "--data", str(tmp_path), "--out", str(out)]
    assert run([*limited, "--format", "json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["run"]["tuned"]["budget"] == 0.6
    assert "written to" in printed.err
    assert MergeConfig.from_pretrained(out).r


@pytest.mark.slow
def test_command_with_a_largest_drop(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for number in range(16):
        small.picture(number).save(tmp_path / "images" / f"{number}.png")
    out = tmp_path / "tuned"
    arguments = ["tune", "--model", str(MODEL_DIR), "--choose", "8", "--batch-size", "8", "--time-limit", "1.5"]
    arguments += ["--method", "tome", "--out", str(out), "--data", str(tmp_path / "images")]
    assert run([*arguments, "--max-drop", "100", "--not-sure"]) == 0
    assert "written to" in capsys.readouterr().err
    assert MergeConfig.from_pretrained(out).r
    assert run([*arguments, "--max-drop", "0", "--restart"]) == 1
    printed = capsys.readouterr()
    assert "Nothing of the front holds `max_drop` (0 points)" in printed.err
    assert f"What was tried is in {out}." in printed.err
    assert not (out / "merge_config.json").exists()
    assert json.loads((out / "results.json").read_text())["run"]["tuned"]["name"] == "unmerged"
    for wrong, message in (
        (["--max-drop", "1", "--budget", "0.5"], "both a `budget` (--budget) and a `max_drop` (--max-drop)"),
        (["--max-drop", "nan"], "it takes points, a number of at least 0"),
        (["--where", "cache"], "`where` is 'cache'; tuning takes one of 'auto', 'tower', 'projected'"),
    ):
        assert run([*arguments, *wrong]) == 1
        assert message in capsys.readouterr().err

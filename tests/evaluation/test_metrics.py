"""The metrics, alone and combined, and the evaluator, on a network-less machine."""

import datasets
import evaluate
import numpy as np
import pytest
import small
import transformers as tf
from scipy import stats

from hf_tome import MergeConfig
from hf_tome.evaluation.merge_evaluator import MergeEvaluator
from hf_tome.evaluation.metrics import bootstrap as intervals
from hf_tome.evaluation.metrics import classes
from hf_tome.evaluation.metrics.classes import ClassificationScorer
from hf_tome.evaluation.metrics.classification import (
    Accuracy,
    Agreement,
    MeanAveragePrecision,
    PairedDrop,
    TopKAccuracy,
)
from hf_tome.pipelines import pipeline

RANKED = [[1, 0, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 0, 1, 3, 4, 5]]


def test_top_k_in_percent():
    metric = TopKAccuracy(keep_in_memory=True)
    metric.add_batch(predictions=RANKED[:2], references=[1, 1])
    metric.add_batch(predictions=RANKED[2:], references=[0, 2])
    assert metric.compute() == {"top1": 50.0, "top5": 75.0}
    assert Accuracy().compute(predictions=[1, 2, 3, 4], references=[1, 2, 3, 0]) == {"top1": 75.0}


def test_agreement_and_drop_are_over_unmerged():
    others = [[1, 0], [1, 0], [1, 0], [2, 0]]
    assert Agreement().compute(predictions=RANKED, unmerged=[*RANKED[:3], [0] * 6]) == {"agreement": 75.0}
    drop = PairedDrop().compute(predictions=[[0, 1]] * 4, unmerged=others, references=[1, 1, 0, 2], seed=1)
    assert drop["drop"] == 50.0  # three hits fewer, one more
    assert drop["drop_low"] <= drop["drop"] <= drop["drop_high"]


def test_interval_of_the_drop_is_seeded_and_as_wide_as_it_should_be():
    generator = np.random.default_rng(0)
    merged, unmerged = (generator.random((2, 400)) < [[0.7], [0.8]]).astype(int)
    inputs = {
        "predictions": merged[:, None].tolist(),
        "unmerged": unmerged[:, None].tolist(),
        "references": [1] * 400,
    }
    first, again = PairedDrop().compute(**inputs, seed=3), PairedDrop().compute(**inputs, seed=3)
    assert first == again
    lost = unmerged - merged
    half = 1.96 * 100 * lost.std() / np.sqrt(len(lost))
    assert first["drop_low"] == pytest.approx(first["drop"] - half, abs=0.5)
    assert first["drop_high"] == pytest.approx(first["drop"] + half, abs=0.5)


def test_mean_average_precision_by_hand():
    scores = [[0.9, 0.1, 0.5], [0.8, 0.7, 0.4], [0.1, 0.6, 0.3]]
    targets = [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    # Class 0: right at ranks 1 and 3; class 1: right at rank 1; class 2 has no positive.
    expected = 100 * ((1 + 2 / 3) / 2 + 1) / 2
    assert MeanAveragePrecision().compute(scores=scores, targets=targets) == {"map": pytest.approx(expected)}
    with pytest.raises(ValueError, match="No sample has a target"):
        MeanAveragePrecision().compute(scores=scores, targets=[[0, 0, 0]] * 3)


def test_average_precision_of_resamples_is_that_of_scikit_learn():
    from sklearn.metrics import average_precision_score

    generator = np.random.default_rng(0)
    scores = generator.integers(0, 8, (40, 3)) / 8.0  # with ties
    targets = (generator.random((40, 3)) < 0.3).astype(int)
    counts = generator.multinomial(40, np.full(40, 1 / 40), size=5)
    found = intervals._mean_precision(scores, targets, counts.T.astype(np.float32))
    for value, drawn in zip(found, counts):
        which = np.repeat(np.arange(40), drawn)
        assert value == pytest.approx(average_precision_score(targets[which], scores[which], average="macro"))


def precision_drop(merged, unmerged, targets, resamples):
    after, before = (intervals.mean_precisions(scores, targets, resamples=resamples) for scores in (merged, unmerged))
    return intervals.paired_drop(after, before)


def test_interval_of_mean_average_precision():
    generator = np.random.default_rng(0)
    targets = (generator.random((200, 4)) < 0.3).astype(int)
    unmerged = targets + generator.normal(0, 0.5, (200, 4))
    merged = unmerged + generator.normal(0, 0.5, (200, 4))
    drop = precision_drop(merged, unmerged, targets, resamples=500)
    assert drop == precision_drop(merged, unmerged, targets, resamples=500)
    before, after = (
        MeanAveragePrecision().compute(scores=scores.tolist(), targets=targets.tolist())["map"]
        for scores in (unmerged, merged)
    )
    assert drop["drop"] == pytest.approx(before - after)
    assert 0 < drop["drop_low"] < drop["drop"] < drop["drop_high"]
    assert set(precision_drop(unmerged, unmerged, targets, resamples=10).values()) == {0.0}


def test_average_precisions_where_a_resample_has_no_positive():
    targets = np.array([[1, 0], [0, 0], [0, 0]])
    drop = precision_drop(np.eye(3)[:, :2], np.ones((3, 2)), targets, resamples=50)
    assert all(np.isfinite(list(drop.values())))


def test_resamples_of_the_unmerged_model_serve_all_configs(monkeypatch):
    resampled = []

    def mean_precisions(scores, targets):
        resampled.append(scores)
        return intervals.mean_precisions(scores, targets, resamples=20)

    monkeypatch.setattr(classes, "mean_precisions", mean_precisions)
    generator = np.random.default_rng(0)

    def records():
        scores = generator.random((5, 2)).tolist()
        return [{"label": [n % 2], "ranked": [0, 1], "scores": row} for n, row in enumerate(scores)]

    scorer, (unmerged, first, second, other) = ClassificationScorer(multi_label=True), (records() for _ in range(4))
    drops = [scorer.metrics(done, unmerged) for done in (unmerged, first, second)]
    assert len(resampled) == 3
    assert drops[1:] == [ClassificationScorer(True).metrics(done, unmerged) for done in (first, second)]
    assert scorer.metrics(first, other) == ClassificationScorer(True).metrics(first, other)


def test_interval_of_a_mean():
    lost = np.random.default_rng(0).normal(5, 2, 400)
    drop = intervals.mean_drop(10 - lost, np.full(400, 10.0))
    assert drop["drop"] == pytest.approx(lost.mean())
    half = 1.96 * lost.std() / np.sqrt(400)
    assert drop["drop_low"] == pytest.approx(lost.mean() - half, abs=0.05)
    assert drop["drop_high"] == pytest.approx(lost.mean() + half, abs=0.05)


def test_metrics_combine():
    metrics = evaluate.combine([TopKAccuracy(), Agreement(), PairedDrop(), MeanAveragePrecision()])
    inputs = {
        "predictions": RANKED,
        "references": [1, 1, 0, 2],
        "unmerged": RANKED,
        "scores": np.eye(4).tolist(),
        "targets": np.eye(4, dtype=int).tolist(),
    }
    expected = {"top1": 50.0, "top5": 75.0, "agreement": 100.0, "drop": 0.0, "map": 100.0}
    assert metrics.compute(**inputs).items() >= expected.items()
    for rows in (slice(2), slice(2, 4)):
        metrics.add_batch(**{name: values[rows] for name, values in inputs.items()})
    assert metrics.compute()["top1"] == 50.0


@pytest.fixture(scope="module")
def labelled():
    names = ["cat", "dog", "tree"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [small.picture(seed) for seed in range(6)], "label": [0, 1, 2, 0, 1, 2]}
    return datasets.Dataset.from_dict(rows, features=features), {name: index for index, name in enumerate(names)}


def test_evaluator_takes_pipelines_folders_and_objects(tmp_path, labelled):
    data, mapping = labelled
    folder, config = small.vit(tmp_path), MergeConfig(r=8)
    pipe = pipeline("image-classification", folder, merge_config=config, device="cpu")
    right = [mapping[result[0]["label"]] for result in pipe(list(data["image"]))]
    expected = 100 * sum(a == b for a, b in zip(right, data["label"])) / 6
    options = {"data": data, "label_mapping": mapping}
    assert MergeEvaluator().compute(pipe, **options)["top1"] == pytest.approx(expected)
    assert MergeEvaluator(merge_config=config).compute(str(folder), **options)["top1"] == pytest.approx(expected)
    model = tf.AutoModelForImageClassification.from_pretrained(folder)
    processor = tf.AutoImageProcessor.from_pretrained(folder)
    scored = MergeEvaluator(merge_config=config).compute(model, feature_extractor=processor, **options)
    assert scored["top1"] == pytest.approx(expected)


def test_evaluator_bootstraps(tmp_path, labelled):
    data, mapping = labelled
    pipe = pipeline("image-classification", small.vit(tmp_path), merge_config=MergeConfig(r=8), device="cpu")
    scored = MergeEvaluator().compute(
        pipe, data=data, label_mapping=mapping, strategy="bootstrap", n_resamples=20, random_state=0
    )
    assert 0 <= scored["top1"]["score"] <= 100
    assert len(scored["top1"]["confidence_interval"]) == 2


@pytest.mark.parametrize("samples", [1, 12, 400])
def test_no_change_in_few_samples_is_no_proof_of_none(samples):
    """Without a changed sample the bootstrap gives 0 to 0; the interval is that of Clopper and Pearson instead."""
    ranked = [[0, 1]] * samples
    values = PairedDrop().compute(predictions=ranked, unmerged=ranked, references=[0] * samples)
    bound = 100 * stats.binomtest(0, samples).proportion_ci(method="exact").high
    assert values == {"drop": 0.0, "drop_low": pytest.approx(-bound), "drop_high": pytest.approx(bound)}
    same = intervals.mean_drop(np.full(samples, 40.0), np.full(samples, 40.0))
    assert same == {"drop": 0.0, "drop_low": pytest.approx(-0.4 * bound), "drop_high": pytest.approx(0.4 * bound)}

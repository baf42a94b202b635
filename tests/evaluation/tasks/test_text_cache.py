"""The task `text-cache`: texts behind merged caches, compared with the full cache."""

import pytest
from decoders import decoder
from small import WORDS, save, tokenizer

from hf_tome import MergeConfig
from hf_tome.evaluation import JobOptions, evaluate
from hf_tome.evaluation.data.splits import DataError
from hf_tome.evaluation.tasks import text_cache
from hf_tome.evaluation.tasks.registry import build_job

HALF = MergeConfig(where="cache", keep_ratio=0.5, size="fitted", protect=(2, 8))
RANDOM = MergeConfig(where="cache", keep_ratio=0.5, method="random_prune", protect=(2, 8))


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(text_cache, "NUM_CONTEXT", 60)
    folder = save(tmp_path / "model", decoder(), tokenizer())
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(3):
        words = [WORDS[5 + (at * (number + 3) + at // 7) % 9] for at in range(90)]
        (texts / f"{number}.txt").write_text(" ".join(words))
    (texts / "short.txt").write_text("the cat")
    return JobOptions(str(folder), str(texts), max_new_tokens=12)


def test_rows(options, tmp_path):
    results = evaluate(build_job("text-cache", options), [HALF, RANDOM], batch_size=2, out=tmp_path / "out")
    full, half, random = results.rows
    assert full["kl"] == pytest.approx(0, abs=1e-6)
    assert full["agreement"] == 100
    assert half["kl"] > 1e-5 < random["kl"]
    assert random["cache_mib"] < full["cache_mib"]  # fitted sizes keep queries, which outweigh so few entries
    assert half["tokens"] == 30 < full["tokens"] == 59  # one more is read with what follows
    assert results.data["num_samples"] == 3
    again = evaluate(build_job("text-cache", options), [HALF, RANDOM], batch_size=2, out=tmp_path / "out")
    assert [row["kl"] for row in again.rows] == [row["kl"] for row in results.rows]


def test_no_texts(options, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no text files"):
        build_job("text-cache", JobOptions(options.model, str(tmp_path / "empty")))

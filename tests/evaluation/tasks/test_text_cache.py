"""The task `text-cache`: texts behind merged caches, compared with the full cache."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from decoders import decoder
from small import WORDS, save, tokenizer

import hf_tome
from hf_tome import MergeConfig
from hf_tome.cli.app import run
from hf_tome.config import format_config
from hf_tome.demo.python_texts import held_out_texts
from hf_tome.evaluation import JobOptions, evaluate
from hf_tome.evaluation.data.contexts.needles import CITIES, Question, hide_needles
from hf_tome.evaluation.data.splits import DataError
from hf_tome.evaluation.metrics.next_tokens import CacheScorer, Continuation
from hf_tome.evaluation.reporting.model_card import read_results
from hf_tome.evaluation.reporting.plots import panels
from hf_tome.evaluation.reporting.tables import notes, to_markdown
from hf_tome.evaluation.tasks.registry import build_job

pytestmark = pytest.mark.usefixtures("costs_hardly_measured")

HALF = MergeConfig(where="cache", keep_ratio=0.5, size="fitted", protect=(2, 8))
RANDOM = MergeConfig(where="cache", keep_ratio=0.5, method="random_prune", protect=(2, 8))


@pytest.fixture
def options(tmp_path):
    folder = save(tmp_path / "model", decoder(), tokenizer())
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(3):
        words = [WORDS[5 + (at * (number + 3) + at // 7) % 9] for at in range(90)]
        (texts / f"{number}.txt").write_text(" ".join(words))
    (texts / "short.txt").write_text("the cat")
    return JobOptions(str(folder), str(texts), max_new_tokens=12, context_tokens=60)


def test_rows(options, tmp_path):
    results = evaluate(build_job("text-cache", options), [HALF, RANDOM], batch_size=2, out=tmp_path / "out")
    full, half, random = results.rows
    assert full["kl"] == pytest.approx(0, abs=1e-6)
    assert full["agreement"] == 100
    for row in results.rows:
        assert 0 <= row["needles"] <= 100
        assert row["first_token_ms"] > 0 < row["written_per_second"]
    assert half["kl"] > 1e-5 < random["kl"]
    assert random["cache_mib"] < full["cache_mib"]  # fitted sizes keep queries, which outweigh so few entries
    assert half["tokens"] == 30 < full["tokens"] == 59  # one more is read with what follows
    assert results.data["num_samples"] == 3
    again = evaluate(build_job("text-cache", options), [HALF, RANDOM], batch_size=2, out=tmp_path / "out")
    for key in ("kl", "needles", "first_token_ms", "written_per_second"):
        assert [row[key] for row in again.rows] == [row[key] for row in results.rows], key
    report = to_markdown(results)
    assert "needles % | cache MiB | first token ms | then tokens/s" in report
    assert "needles: share of the tokens" in notes(results)


def encode(text):
    """One token a character."""
    return list(text.encode())


def test_needles_are_hidden_and_asked_for():
    text = [1000, *range(2000, 3000)]
    haystack = hide_needles(text, encode, 300, 20, seed=3, num_leading=1)
    assert len(haystack.context) == 300
    assert haystack.context[0] == 1000
    own = [token for token in haystack.context if token >= 1000]
    assert own + haystack.following == text[: len(own) + 20]
    hidden = bytes(token for token in haystack.context if token < 1000).decode()
    numbers = re.findall(r"The secret number of (\w+) is (\d{5})\. ", hidden)
    assert [city for city, _ in numbers] == list(CITIES)
    for question, (city, number) in zip(haystack.questions, numbers):
        asked = bytes(question.ids).decode()
        assert asked == f"\n The secret number of {city} is {number}"
        assert asked[-question.num_answer :] == number
    assert hide_needles(text, encode, 300, 20, seed=4).questions != haystack.questions
    with pytest.raises(ValueError, match="A context of 60 tokens has no room for 3 needles"):
        hide_needles(text, encode, 60, 20, seed=3)


def test_answers_are_scored_row_by_row():
    """A model that says each token again a step later; rows of unequal length do not disturb each other."""

    class Echo:
        def forward(self, input_ids, past_key_values):
            """The signature that the scorer looks at."""

        def __call__(self, input_ids, past_key_values, use_cache):
            logits = torch.nn.functional.one_hot(input_ids, 100).float()
            return SimpleNamespace(logits=logits)

    questions = [[Question([5, 7, 7, 7], 2)], [Question([5, 5, 6], 2)]]
    output = Continuation(torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 3, 100), [(None, 2)], 0, 0, 0, 0)
    assert CacheScorer(Echo(), lambda sample: ())._needles(questions, output) == [1.0, 0.5]


def test_a_shipped_model_is_named_alone(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name, text in held_out_texts(900)[:4]:
        (texts / f"{name}.txt").write_text(text)
    found = hf_tome.evaluate(
        "tiny-lm",
        str(texts),
        task="text-cache",
        configs=["where=cache,keep_ratio=0.5,size=fitted", "where=cache,keep_ratio=0.5,method=recent_prune"],
        context_tokens=120,
        max_new_tokens=8,
    )
    full, fitted, recent = found.rows
    assert full["perplexity"] < 60  # 1,024 would be chance
    assert fitted["tokens"] == recent["tokens"] == 60
    assert 0 < fitted["kl"] < recent["kl"]


def test_results_are_drawn_and_have_a_card(options, tmp_path):
    out, card = tmp_path / "out", tmp_path / "card"
    config = format_config(HALF)
    arguments = ["--model", options.model, "--data", options.data, "--context-tokens", "60", "--max-new-tokens", "12"]
    assert run(["eval", "--task", "text-cache", *arguments, "--config", config, "--out", str(out)]) == 0
    assert (out / "pareto.png").stat().st_size > 1000
    assert "needles %" in (out / "report.md").read_text()
    assert run(["card", str(out), "--base-model", "me/model", "--dataset", "me/texts", "--out", str(card)]) == 0
    written = (card / "README.md").read_text()
    assert "needles" in written
    assert json.loads((card / "merge_config.json").read_text())["where"] == "cache"
    assert [key for key, _ in panels(read_results(out))] == ["samples_per_second", "cache_mib"]


def test_the_full_cache_alone(options):
    (row,) = evaluate(build_job("text-cache", options), [], batch_size=3).rows
    assert row["kl"] == pytest.approx(0, abs=1e-6)
    assert row["tokens"] == 59


def test_no_texts(options, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no text files"):
        build_job("text-cache", JobOptions(options.model, str(tmp_path / "empty")))

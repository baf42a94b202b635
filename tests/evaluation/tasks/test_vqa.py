"""Questions about images: how answers are compared, how choices are read, and the task on a small random LLaVA."""

import json

import datasets
import pytest
import small
import speaking

from hf_tome import MergeConfig
from hf_tome.cli.app import run as run_command
from hf_tome.evaluation.data.samples import SkipSample
from hf_tome.evaluation.data.splits import DataError
from hf_tome.evaluation.metrics.choices import read_choice, right_letter
from hf_tome.evaluation.metrics.text_metrics import AnswerAccuracy, normal_answer
from hf_tome.evaluation.metrics.texts import GeneratedText, score_answers
from hf_tome.evaluation.options import JobOptions, OptionError
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.tasks.generation.vqa import vqa_job
from hf_tome.evaluation.tasks.registry import build_job

pytestmark = pytest.mark.usefixtures("costs_hardly_measured")

TASK = "visual-question-answering"
R8 = MergeConfig(r=8)
ANIMALS = ["cat", "a big dog", "tree"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Dog.", "dog"),
        ("an  apple\n", "apple"),
        ("two", "2"),
        ("None", "0"),
        ("2,000", "2000"),
        ("2.5", "2.5"),
        ("dont know", "don't know"),
        ("it\N{RIGHT SINGLE QUOTATION MARK}s 10:30", "it's 10:30"),
        ("red-and-white", "red and white"),
        ("well", "well"),  # not we'll
        ("A", "a"),
        ("", ""),
    ],
)
def test_normal_answers(text, normal):
    assert normal_answer(text) == normal


def accuracy(predictions, references):
    return AnswerAccuracy(keep_in_memory=True).compute(predictions=predictions, references=references)


def test_accuracy_by_hand():
    assert accuracy(["The dog", "cat", "", "7"], [["dog", "puppy"], ["dog"], ["a"], ["seven"]]) == {"accuracy": 50.0}
    ten = [["dog"] * 2 + ["cat"] * 8, ["yes"] * 10, ["a"] * 10]
    # Two of ten said dog: of the ten sets of nine, eight hold both (2/3) and two hold one (1/3).
    found = accuracy(["dog", "yes", "no"], ten)
    assert found["accuracy"] == pytest.approx(200 / 3)
    assert found["vqa_accuracy"] == pytest.approx(100 * ((8 * 2 / 3 + 2 * 1 / 3) / 10 + 1 + 0) / 3)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(c)", "C"),
        ("B. a big dog", "B"),
        ("A) cat", "A"),
        ("The answer is (B), since", "B"),
        ("Option: C", "C"),
        ("Big dog.", "B"),
        ("A big dog", "B"),  # an article, not the letter
        ("A cat sits on a tree", ""),
        ("D", ""),  # there is no fourth option
        ("", ""),
        ("dog", ""),
        # Letters with marks around them, and given as the answer
        ("**B**", "B"),
        ("**B. a big dog**", "B"),
        ("__B__", "B"),
        ("[B]", "B"),
        ("\\boxed{B}", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("b) a big dog", "B"),
        ("B!", "B"),
        ("'B'", "B"),
        ("B.a big dog", "B"),
        ("tree (C)", "C"),
        ("B - a big dog", "B"),
        ("B\nIt barks.", "B"),
        ("I think it's B", "B"),
        ("It is B. a big dog", "B"),
        ("I would say B, since it barks.", "B"),
        ("The correct option is (B) a big dog.", "B"),
        ("B is correct", "B"),
        ("The answer is A because it purrs", "A"),
        # Letters before words
        ("B a big dog", "B"),
        ("B big dog", "B"),
        ("A cat", "A"),
        ("The answer is A cat.", "A"),
        ("The answer is A big dog.", ""),  # the letter A, or an article
        ("The answer is A dog.", ""),
        ("B cat", ""),
        ("A.M.", ""),
        ("The answer is C++", ""),
        ("A-frame", ""),
        # Words alone
        ("The answer is a big dog.", "B"),
        ("It is a cat", "A"),
        ("The answer is dog", ""),
        # Two options, or none
        ("A. big dog", ""),
        ("The answer is C: cat", ""),
        ("tree (B)", ""),
        ("B.cat", ""),
        ("A, B", ""),
        ("A and B", ""),
        ("B or C", ""),
        ("(A) or (B)", ""),
        ("A. cat B. a big dog C. tree", ""),
        ("The answer is B. No, it is C.", ""),
        ("It is not A", ""),
        ("It is not (A)", ""),
        ("It isn't B.", ""),
        ("It can't be B.", ""),
        ("B is wrong", ""),
        ("(A) is wrong", ""),
        ("A) is not right", ""),
        ("B, not A", "B"),
        ("E. cat", ""),
    ],
)
def test_choices_are_read(text, letter):
    assert read_choice(text, ANIMALS) == letter


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("The answer is A dog.", ["dog", "cat"], "A"),
        ("It is vitamin C.", ["iron", "zinc", "vitamin C"], "C"),
        ("Vitamin A.", ["iron", "zinc", "vitamin A"], "C"),
        ("It is Vitamin A.", ["iron", "zinc", "vitamin A"], "C"),
        ("A", ["B", "A"], "A"),  # it was asked for the letter
        ("the answer is not given", ["7", "not given"], "B"),
        ("3", ["-3", "5"], ""),
        ("-3", ["3", "-3"], "B"),
        ("cat", ["cat", "cat"], ""),
        ("?", ["!", "..."], ""),
        ("I think so", list("nopqrstuvw"), ""),
        ("with milk", ["milk", "with milk"], "B"),
        ("1/2", ["1/2", "1 2"], ""),
    ],
)
def test_choices_among_others_are_read(text, choices, letter):
    assert read_choice(text, choices) == letter


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        (0, ["2", "1", "0"], "A"),  # a number is an index
        ("0", ["2", "1", "0"], "C"),  # a text is an option, if it is one
        ("0", ["cat", "dog"], "A"),
        ("(b)", ["cat", "dog"], "B"),
        ("B", ["C", "B", "A"], "B"),
        ("A", ["C", "B", "A"], "C"),
        (1, [1, 0], None),  # the second option, or the first
        (1, [3, 1], "B"),
        (2, [3, 1], None),
        (-1, ["cat", "dog"], None),
        ("cat", ["cat", "cat"], None),
        ("maybe", ["cat", "dog"], None),
        (True, ["cat", "dog"], None),
    ],
)
def test_right_letters(answer, choices, letter):
    if letter is not None:
        assert right_letter(answer, choices) == letter
    else:
        with pytest.raises(SkipSample, match="answer"):
            right_letter(answer, choices)


def test_scores_of_choices_and_free_answers():
    choice = {"answers": ["A"], "choices": ANIMALS}
    done = [
        {"text": "A.", "right": choice},
        {"text": "no idea", "right": choice},
        {"text": "the tree", "right": {"answers": ["tree"]}},
    ]
    unmerged = [{**record, "text": text} for record, text in zip(done, ("A", "cat", "tree"))]
    found = score_answers(done, unmerged)
    assert found["accuracy"] == found["drop"] + 100 / 3 == pytest.approx(200 / 3)
    assert found["answered"] == 50.0
    assert found["drop_low"] <= found["drop"] <= found["drop_high"]
    assert "answered" not in score_answers(done[2:], unmerged[2:])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return speaking.llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def questions(tmp_path):
    """Three questions that can be asked, and five that cannot."""
    folder = tmp_path / "animals"
    folder.mkdir()
    small.picture(0).save(folder / "0.png")
    small.picture(1).save(folder / "1.png")
    rows = [
        {"image": "0.png", "question": "what is it ?", "answer": "dog"},
        {"image": "1.png", "question": "what is it ?", "answers": ["cat", "the cat"]},
        {"image": "0.png", "question": "what is it ?", "choices": ANIMALS, "answer": "B"},
        {"image": "absent.png", "question": "what ?", "answer": "dog"},
        {"image": "0.png", "question": "", "answer": "dog"},
        {"image": "0.png", "question": "what ?", "answer": None},
        {"image": "0.png", "question": "what ?", "choices": ["yes", "no"], "answer": "maybe"},
        {"image": None, "question": "what ?", "answer": "dog"},
    ]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def job_on(model, folder, **options):
    return build_job(TASK, JobOptions(str(model), str(folder), **{"max_new_tokens": 4, **options}))


def test_answers_merged_beside_unmerged(model, questions, tmp_path):
    results = evaluate(job_on(model, questions), [R8], batch_size=3, out=tmp_path / "out")
    assert results.data["num_samples"] == 3
    assert [one["reason"] for one in results.data["skipped"]] == [
        "there is no file absent.png in the folder of the data",
        "it has no question",
        "it has no answer",
        "its answer 'maybe' is none of the 2 options, by text, letter or index from 0",
        "it has no image",
    ]
    unmerged, merged = results.rows
    assert (unmerged["tokens"], merged["tokens"]) == (speaking.PATCHES, speaking.PATCHES - 16)
    assert {"accuracy", "answered", "agreement", "drop", "drop_low", "new_tokens"} <= set(unmerged)
    records = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [one["right"] for one in records if "right" in one][:3] == [
        {"answers": ["dog"]},
        {"answers": ["cat", "the cat"]},
        {"answers": ["B"], "choices": ANIMALS},
    ]


def test_prompts_of_free_answers_and_of_options(model, questions):
    free, _, choice = list(job_on(model, questions).data)
    assert free.content.prompt == "what is it ?\nAnswer the question using a single word or phrase."
    assert choice.content.prompt == (
        "what is it ?\nA. cat\nB. a big dog\nC. tree\nAnswer with the option's letter from the given choices directly."
    )
    free, _, choice = list(job_on(model, questions, prompt="photo : {question}").data)
    assert free.content.prompt == "photo : what is it ?"
    assert choice.content.prompt == "photo : what is it ?\nA. cat\nB. a big dog\nC. tree"
    with pytest.raises(DataError, match=r"test\.jsonl is one file, .* and not 'dev'"):
        build_job(TASK, JobOptions(str(model), str(questions / "test.jsonl"), split="dev"))
    with pytest.raises(OptionError, match="--streaming means nothing"):
        job_on(model, questions, streaming=True)
    with pytest.raises(DataError, match=r"no place for the question: write \{question\}"):
        job_on(model, questions, prompt="what is it ?")


def test_rows_of_a_batch_do_not_see_each_other(model, questions):
    # Prompts of three lengths, padded on the left, whose placeholders then fall by merging.
    job = job_on(model, questions)
    for config in (R8, MergeConfig(method="mame", threshold=0.7)):
        together = evaluate(job, [config], batch_size=3)
        alone = evaluate(job, [config], batch_size=1)
        for row, expected in zip(together.rows, alone.rows):
            assert row["tokens"] == expected["tokens"]
            assert row["accuracy"] == expected["accuracy"]
            assert row["agreement"] == expected["agreement"]


def test_right_answers_are_counted(model, questions):
    job = job_on(model, questions)
    texts = iter(["A dog.", "cat", "B"])
    ids = [[job.scorer.processor.tokenizer.convert_tokens_to_ids(word) for word in text.split()] for text in texts]
    expected = [speaking.WORDS.index("cat"), speaking.WORDS.index("B")]
    assert [ids[1][0], ids[2][0]] == expected
    job.run = lambda model, inputs: [GeneratedText(found, 64) for found in ids]
    row = evaluate(job, []).rows[0]
    assert row["accuracy"] == pytest.approx(200 / 3)  # "A dog." is two unknown words to this tokenizer
    assert row["answered"] == 100.0


@pytest.mark.parametrize(
    ("columns", "right"),
    [
        ({"answer": ["dog"]}, {"answers": ["dog"]}),
        ({"answers": [[{"answer": "dog"}, {"answer": "cat"}]]}, {"answers": ["dog", "cat"]}),
        ({"choices": [ANIMALS], "answer": [2]}, {"answers": ["C"], "choices": ANIMALS}),
        ({"options": [str(ANIMALS)], "answer": ["A"]}, {"answers": ["A"], "choices": ANIMALS}),
        ({"A": ["cat"], "B": ["dog"], "C": [None], "answer": ["dog"]}, {"answers": ["B"], "choices": ["cat", "dog"]}),
        ({"choices": [["3", "1"]], "answer": ["1"]}, {"answers": ["B"], "choices": ["3", "1"]}),  # text, then index
        ({"choices": [["2", "1", "0"]], "answer": [0]}, {"answers": ["A"], "choices": ["2", "1", "0"]}),  # an index
    ],
)
def test_data_sets(columns, right, model, tmp_path):
    rows = datasets.Dataset.from_dict({"image": [small.picture()], "question": ["what ?"], **columns})
    rows.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "stored"))
    (sample,) = job_on(model, tmp_path / "stored").data
    assert sample.label == right


def test_a_stream_of_parquet(model, tmp_path):
    columns = {"image": [small.picture(seed) for seed in range(3)], "question": ["what ?"] * 3, "answer": ["dog"] * 3}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    (tmp_path / "data").mkdir()
    rows.to_parquet(str(tmp_path / "data" / "validation-00000-of-00001.parquet"))
    job = job_on(model, tmp_path / "data", streaming=True, limit=2)
    assert len(job.data) == 0  # a stream does not tell
    results = evaluate(job, [R8], batch_size=2)
    assert results.data["num_samples"] == 2
    assert results.data["split"] == "validation"


def test_data_without_questions(model, tmp_path):
    small.picture().save(tmp_path / "0.png")
    (tmp_path / "test.json").write_text('[{"image": "0.png", "caption": "a dog"}]')
    with pytest.raises(DataError, match=r"no column of questions; .*question, query\. The columns are image, caption"):
        job_on(model, tmp_path)
    (tmp_path / "test.json").write_text('[{"image": "0.png", "question": "what ?"}]')
    with pytest.raises(DataError, match="no column of answers; it can be called answers, answer"):
        job_on(model, tmp_path)


def test_questions_in_memory():
    built, processor = speaking.build()
    rows = [{"image": small.picture(seed), "question": "what ?", "answer": str(seed)} for seed in range(3)]
    job = vqa_job(built, processor, rows, name="tiny", prompt="{question}", max_new_tokens=2)
    results = evaluate(job, [R8], batch_size=2)
    assert results.run["prompt"] == "{question}"
    assert results.data["num_samples"] == 3


def test_the_command(model, questions, tmp_path, capsys):
    options = ["--model", str(model), "--data", str(questions / "test.jsonl"), "--config", "r=8", "--device", "cpu"]
    command = ["eval", "--task", TASK, "--max-new-tokens", "2", *options]
    assert run_command([*command, "--out", str(tmp_path / "out"), "--format", "json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["run"]["max_new_tokens"] == 2
    assert results["data"]["id"] == "test"
    assert run_command([*command, "--format", "md"]) == 0
    assert "| right % |" in capsys.readouterr().out
    assert run_command([*command, "--prompt", "what ?"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: The prompt 'what ?' has no place for the question")
    assert error.count("\n") == 1

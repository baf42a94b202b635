"""Runs that are killed and go on, and runs shared among processes: the same results, each sample once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import small
import torch
import transformers
from runs import lines, results_in, without_time

from hf_tome import MergeConfig
from hf_tome.cli.app import run
from hf_tome.evaluation.data import digits
from hf_tome.evaluation.data.image_text import ImageTexts
from hf_tome.evaluation.data.splits import DataError
from hf_tome.evaluation.options import JobOptions
from hf_tome.evaluation.reporting.tables import FORMATS
from hf_tome.evaluation.running.loop import ROUNDS
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.search.sweep import with_controls
from hf_tome.evaluation.store.fingerprint import fingerprint
from hf_tome.evaluation.store.run_store import Records, ResumeError
from hf_tome.evaluation.tasks.classification.image_classification import digits_classification
from hf_tome.evaluation.tasks.generation.generation import load_generator
from hf_tome.evaluation.tasks.generation.vqa import vqa_job
from hf_tome.evaluation.tasks.registry import build_job

CONFIGS = [MergeConfig(r=16), MergeConfig(method="mame", threshold=0.8)]


@pytest.fixture(scope="module")
def digit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    for position, sample in enumerate(digits.load_digits("test").select(range(22))):
        place = folder / "test" / str(sample["label"])
        place.mkdir(parents=True, exist_ok=True)
        sample["image"].save(place / f"{position:02}.png")
    (folder / "test" / "3" / "broken.png").write_bytes(b"not an image")
    return folder


@pytest.fixture
def few_digits(tmp_path_factory):
    """Eight held-out digits in a folder that a test may change, and a folder for each class."""
    folder = tmp_path_factory.mktemp("few") / "digits"
    for digit in range(10):
        (folder / "test" / str(digit)).mkdir(parents=True)
    for position, sample in enumerate(digits.load_digits("test").select(range(8))):
        sample["image"].save(folder / "test" / str(sample["label"]) / f"{position:02}.png")
    return folder


def job_on(folder, **options):
    return build_job("image-classification", JobOptions(str(digits.MODEL_DIR), str(folder), **options))


class Killed(Exception):
    pass


def killed_after(folder, out, forwards):
    """Evaluate, and die in the middle of the given forward."""
    job = job_on(folder)
    scores, calls = job.run, iter(range(forwards))

    def mortal(model, inputs):
        if next(calls, None) is None:
            raise Killed
        return scores(model, inputs)

    job.run = mortal
    with pytest.raises(Killed):
        evaluate(job, CONFIGS, batch_size=4, out=out)


def test_a_killed_run_goes_on_and_gives_the_same(digit_folder, tmp_path):
    whole = evaluate(job_on(digit_folder), CONFIGS, batch_size=4, out=tmp_path / "whole")
    out = tmp_path / "killed"
    for forwards in (3, 9, 14):
        killed_after(digit_folder, out, forwards)
    before = lines(out)
    with (out / "samples.jsonl").open("a") as file:
        file.write('{"variant": "r=16", "sam')  # cut short by the kill
    resumed = evaluate(job_on(digit_folder), CONFIGS, batch_size=4, out=out)
    assert without_time(resumed) == without_time(whole)
    text = (out / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in text[: len(before)]] == before  # nothing is rewritten
    assert 0 < sum("ranked" in record for record in before) < 66
    kept = [line for line in text if not line.endswith('"sam')]
    done = [json.loads(line) for line in kept]
    pairs = [(record["variant"], record["sample"]) for record in done if "ranked" in record]
    assert len(pairs) == len(set(pairs)) == 22 * 3  # no finished sample was run again


def test_settings_that_json_writes_otherwise_are_the_same(few_digits, tmp_path):
    job = job_on(few_digits)
    job.settings = {"sizes": (1, 2)}
    for _ in range(2):
        evaluate(job, [], batch_size=4, out=tmp_path)


def test_a_finished_run_is_only_read(digit_folder, tmp_path):
    first = evaluate(job_on(digit_folder), CONFIGS, batch_size=4, out=tmp_path)
    job = job_on(digit_folder)
    job.run = job.prepare = None
    again = evaluate(job, CONFIGS, batch_size=4, out=tmp_path)
    assert again.to_dict() == first.to_dict()
    more = evaluate(job_on(digit_folder), [*CONFIGS, MergeConfig(r=8)], batch_size=4, out=tmp_path)
    assert [row["name"] for row in more.rows][-1] == "r=8"
    assert more.rows[1]["speedup"] == first.rows[1]["speedup"]
    assert without_time(more)["rows"][:-1] == without_time(first)["rows"]


def test_another_run_is_not_gone_on_with(digit_folder, tmp_path):
    evaluate(job_on(digit_folder), [], batch_size=4, out=tmp_path)
    with pytest.raises(
        ResumeError, match=r"another run: batch_size 4 instead of 8\. Give another --out, or .*--restart"
    ):
        evaluate(job_on(digit_folder), [], batch_size=8, out=tmp_path)
    with pytest.raises(ResumeError, match="limit None instead of 5, samples 23 instead of 5"):
        evaluate(job_on(digit_folder, limit=5), [], batch_size=4, out=tmp_path)
    job = job_on(digit_folder)
    with torch.no_grad():
        job.model.classifier.bias.add_(1)
    with pytest.raises(ResumeError, match="weights"):
        evaluate(job, [], batch_size=4, out=tmp_path)


def test_the_limit_may_grow(digit_folder, tmp_path):
    """The samples of the smaller draw keep their results, but for those of a batch that was not full."""
    small = evaluate(job_on(digit_folder, limit=6), CONFIGS, batch_size=4, out=tmp_path / "grown")
    before = results_in(tmp_path / "grown")
    grown = evaluate(job_on(digit_folder, limit=15), CONFIGS, batch_size=4, out=tmp_path / "grown")
    whole = evaluate(job_on(digit_folder, limit=15), CONFIGS, batch_size=4, out=tmp_path / "whole")
    assert without_time(grown) == without_time(whole)
    assert (small.run["limit"], grown.run["limit"]) == (6, 15)
    again = results_in(tmp_path / "grown")[len(before) :]
    kept = set(before) - set(again)
    assert kept == {(variant, position) for variant, position in before if position < 4}
    assert len(kept) >= 3 * 3  # one of the four is no image
    with pytest.raises(ResumeError, match=r"holds a sample \d+, and there are 6"):
        evaluate(job_on(digit_folder, limit=6), CONFIGS, batch_size=4, out=tmp_path / "grown")
    with pytest.raises(ResumeError, match="seed 0 instead of 1"):
        evaluate(job_on(digit_folder, limit=20, seed=1), CONFIGS, batch_size=4, out=tmp_path / "grown")
    other = tmp_path / "other"
    shutil.copytree(digit_folder, other / "digits")
    name = job_on(digit_folder, limit=6).data.listed()[0].name
    (other / "digits" / "test" / name).rename(other / "digits" / "test" / "9" / "renamed.png")
    with pytest.raises(ResumeError, match="other sample names"):
        evaluate(job_on(other / "digits", limit=20), CONFIGS, batch_size=4, out=tmp_path / "grown")


def test_fingerprints_tell_weights_apart():
    one, other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    assert fingerprint(one) != fingerprint(other)
    other.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(other)


def test_a_batch_that_does_not_fit_is_halved(caplog):
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(16))
    expected = evaluate(job, [CONFIGS[0]], batch_size=8)
    scores = job.run

    def small_gpu(model, inputs):
        if len(inputs["pixel_values"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scores(model, inputs)

    job.run = small_gpu
    assert without_time(evaluate(job, [CONFIGS[0]], batch_size=8)) == without_time(expected)
    assert "Out of memory with batches of 8; continuing with 4." in caplog.text
    assert "Out of memory with batches of 4; continuing with 2." in caplog.text


def command(folder, out):
    arguments = ["eval", "--model", digits.MODEL_DIR, "--data", folder, "--out", out, "--batch-size", 4]
    return [*map(str, arguments), "--config", "r=16", "--device", "cpu", "--format", "json"]


ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_processes_give_what_one_gives(digit_folder, tmp_path):
    options = {"capture_output": True, "text": True, "env": ENVIRONMENT, "check": True}
    one = subprocess.run([sys.executable, "-m", "hf_tome", *command(digit_folder, tmp_path / "one")], **options)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "hf_tome"]
    two = subprocess.run([*launch, *command(digit_folder, tmp_path / "two")], **options)
    single, shared = json.loads(one.stdout), json.loads(two.stdout)  # printed once
    assert shared["run"]["processes"] == 2
    assert without_time(shared) == without_time(single)
    assert sorted(results_in(tmp_path / "two")) == sorted(results_in(tmp_path / "one"))
    assert {file.name for file in (tmp_path / "two").glob("samples*")} == {"samples.jsonl", "samples-1.jsonl"}
    # One process resumes what two began.
    again = subprocess.run([sys.executable, "-m", "hf_tome", *command(digit_folder, tmp_path / "two")], **options)
    assert without_time(json.loads(again.stdout)) == without_time(single)


def test_a_process_that_is_killed_loses_nothing(digit_folder, tmp_path, capsys):
    arguments = command(digit_folder, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_tome", *arguments], stdout=subprocess.DEVNULL, env=ENVIRONMENT
    )
    file = tmp_path / "samples.jsonl"
    while process.poll() is None and not (file.exists() and file.read_text().count("ranked") >= 8):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = results_in(tmp_path)
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["data"]["num_samples"] == 22
    after = results_in(tmp_path)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 44


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_said():
    records = Records(path=Path("/dev/full"))
    with pytest.raises(OSError, match=r"No space left on device: what was finished before is kept in .*resumes"):
        records.add([{"variant": "unmerged", "peak_memory_mib": 1.0}])


# What makes it another run


def renamed(folder, place, steps=1):
    """Write a labels file by which each digit's folder is called another digit."""
    text = "".join(f"{digit},{(digit + steps) % 10}\n" for digit in range(10))
    (place / f"labels{steps}.csv").write_text("label,name\n" + text)
    return place / f"labels{steps}.csv"


def test_other_labels_are_another_run(few_digits, tmp_path):
    first = evaluate(job_on(few_digits, labels=renamed(few_digits, tmp_path, 1)), [], batch_size=4, out=tmp_path)
    with pytest.raises(ResumeError, match=r"another run: other labels\. Give another --out, or .*--restart"):
        evaluate(job_on(few_digits, labels=renamed(few_digits, tmp_path, 2)), [], batch_size=4, out=tmp_path)
    same = tmp_path / "same.csv"
    same.write_text(renamed(few_digits, tmp_path, 1).read_text())
    again = evaluate(job_on(few_digits, labels=same), [], batch_size=4, out=tmp_path)
    assert again.rows == first.rows


def test_other_samples_are_another_run(few_digits, tmp_path, caplog):
    evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)
    moved = tmp_path / "elsewhere" / few_digits.name
    shutil.copytree(few_digits, moved)
    evaluate(job_on(moved), [], batch_size=4, out=tmp_path)
    assert "resuming with data in another folder" in caplog.text
    file = next((moved / "test").glob("*/*"))
    file.rename(file.with_name("other.png"))
    with pytest.raises(ResumeError, match=r"another run: other sample names\. Give another --out"):
        evaluate(job_on(moved), [], batch_size=4, out=tmp_path)


def test_a_stream_of_another_folder_is_another_run(few_digits, tmp_path):
    evaluate(job_on(few_digits, streaming=True), [], batch_size=4, out=tmp_path / "out")
    evaluate(job_on(few_digits, streaming=True), [], batch_size=4, out=tmp_path / "out")
    shutil.copytree(few_digits, tmp_path / few_digits.name)
    with pytest.raises(ResumeError, match="other place of the data"):
        evaluate(job_on(tmp_path / few_digits.name, streaming=True), [], batch_size=4, out=tmp_path / "out")


def test_another_processor_is_another_run(few_digits, tmp_path):
    model = tmp_path / digits.MODEL_DIR.name
    shutil.copytree(digits.MODEL_DIR, model)
    options = JobOptions(str(model), str(few_digits))
    evaluate(build_job("image-classification", options), [], batch_size=4, out=tmp_path / "out")
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.1, 0.1, 0.1]}))
    with pytest.raises(ResumeError, match="another run: other processor"):
        evaluate(build_job("image-classification", options), [], batch_size=4, out=tmp_path / "out")


@pytest.mark.parametrize("what", ["class_names", "templates"])
def test_other_sentences_are_another_run(tmp_path, what):
    for name in ("cat", "dog"):
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        small.picture().save(tmp_path / "data" / "test" / name / "0.png")
    texts = {"class_names": ("a\nb\n", "b\na\n"), "templates": ("a {}\n", "the big {}\n")}[what]
    model, file = small.dual(tmp_path / "model"), tmp_path / "texts.txt"
    for text in texts:
        file.write_text(text)
        job = build_job(
            "zero-shot-image-classification", JobOptions(str(model), str(tmp_path / "data"), **{what: file})
        )
        if text is texts[0]:
            evaluate(job, [], out=tmp_path / "out")
    with pytest.raises(ResumeError, match=f"another run: other {what.replace('_', ' ')}"):
        evaluate(job, [], out=tmp_path / "out")


def test_other_questions_are_another_run(tmp_path):
    model, processor = load_generator(JobOptions(str(small.llava(tmp_path / "model")), "data"))

    def job(question):
        rows = [{"image": small.picture(), "question": question, "answer": "cat"}]
        return vqa_job(model, processor, rows, prompt="<image> a photo of {question}", max_new_tokens=2)

    evaluate(job("the cat"), [], out=tmp_path / "out")
    evaluate(job("the cat"), [], out=tmp_path / "out")
    with pytest.raises(ResumeError, match="another run: other prompts"):
        evaluate(job("the dog"), [], out=tmp_path / "out")


def test_nothing_depends_on_the_seed_without_a_draw(few_digits, tmp_path):
    first = evaluate(job_on(few_digits, seed=0), [], batch_size=4, out=tmp_path)
    again = evaluate(job_on(few_digits, seed=1), [], batch_size=4, out=tmp_path)
    assert again.rows == first.rows
    assert again.run["limit"] is None
    assert "seed" not in again.run
    evaluate(job_on(few_digits, limit=4, seed=0), [], batch_size=4, out=tmp_path / "drawn")
    with pytest.raises(ResumeError, match="seed 0 instead of 1"):
        evaluate(job_on(few_digits, limit=4, seed=1), [], batch_size=4, out=tmp_path / "drawn")
    with pytest.raises(ValueError, match=r"seed \(--seed\) is -1; it takes an integer of at least 0"):
        job_on(few_digits, limit=4, seed=-1)


def test_samples_are_listed_as_they_are_read(few_digits, tmp_path):
    rows = digits.load_digits("test").select(range(8))
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "parquet" / "test.parquet")
    for folder, limit in ((few_digits, None), (few_digits, 5), (tmp_path / "saved", 5), (tmp_path / "parquet", None)):
        job = job_on(folder, limit=limit)
        assert job.data.listed() == [(sample.name, sample.label, None) for sample in job.data]
    assert job_on(few_digits, streaming=True).data.listed() is None
    decoded = ImageTexts("digits", "test", rows, "image", lambda row: ("what?", [str(row["label"])]))
    assert decoded.listed() == [(sample.name, sample.label, sample.content.prompt) for sample in decoded]
    unlabelled = ImageTexts("digits", "test", [{"image": rows[0]["image"]}], "image", lambda row: row["question"])
    assert unlabelled.listed() == [("sample 0", None, None)]


# What is wrong with the file


@pytest.mark.parametrize(("key", "value"), [("label", 11), ("name", "9/other.png")])
def test_records_of_other_samples_are_refused(few_digits, tmp_path, key, value):
    evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)
    change(tmp_path, lambda record: {**record, key: value} if record.get("sample") == 3 else record)
    with pytest.raises(ResumeError, match=rf"holds sample 3 with the {key} {value!r} instead of .*--restart"):
        evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)


def change(folder, edit):
    """Edit what a run has written."""
    changed = [json.dumps(edit(record)) for record in lines(folder)]
    (folder / "samples.jsonl").write_text("\n".join(changed) + "\n")


def test_a_first_line_that_was_cut_short(few_digits, tmp_path, caplog):
    whole = evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)
    first, *rest = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text(first[:20])
    again = evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)
    assert "cut short in its first line" in caplog.text
    assert without_time(again) == without_time(whole)
    with pytest.raises(ResumeError, match="another run: batch_size"):
        evaluate(job_on(few_digits), [], batch_size=8, out=tmp_path)
    (tmp_path / "samples.jsonl").write_text(first[:20] + "\n" + "".join(rest))
    with pytest.raises(ResumeError, match=r"does not say of which run its samples are: its first line is lost\."):
        evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)


@pytest.mark.parametrize("line", ["12", "null", '["a"]', '{"variant": "unmerged"}', '{"run": {"task": "x"}}'])
def test_lines_of_something_else(few_digits, tmp_path, line):
    evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path / "out")
    with (tmp_path / "out" / "samples.jsonl").open("a") as file:
        file.write(line + "\n")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "samples.jsonl").write_text(line + "\n")
    with pytest.raises(ResumeError, match="--restart"):
        evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path / "alone")
    if "run" not in line:
        with pytest.raises(ResumeError, match=r"a line that is none of a run's.*--restart"):
            evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path / "out")


# Files that change between two runs


def test_a_file_that_vanished_is_left_out_of_all_rows(few_digits, tmp_path):
    evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)
    file = sorted((few_digits / "test").glob("*/*"))[3]
    content = file.read_bytes()
    file.write_bytes(b"not an image")
    results = evaluate(job_on(few_digits), [MergeConfig(r=16)], batch_size=4, out=tmp_path)
    assert results.data["num_samples"] == 7
    assert [skipped["sample"] for skipped in results.data["skipped"]] == ["/".join(file.parts[-2:])]
    assert results.rows[1]["agreement"] >= 0
    # The unmerged model had seen it: alone, its rows have all samples.
    alone = evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)
    assert (alone.data["num_samples"], alone.data["skipped"]) == (8, [])
    file.write_bytes(content)
    results = evaluate(job_on(few_digits), [MergeConfig(r=16)], batch_size=4, out=tmp_path)
    assert (results.data["num_samples"], results.data["skipped"]) == (8, [])


def test_a_mended_file_is_read_and_no_longer_skipped(few_digits, tmp_path):
    file = sorted((few_digits / "test").glob("*/*"))[3]
    content = file.read_bytes()
    file.write_bytes(b"not an image")
    first = evaluate(job_on(few_digits), CONFIGS, batch_size=4, out=tmp_path / "out")
    assert (first.data["num_samples"], len(first.data["skipped"])) == (7, 1)
    size = (tmp_path / "out" / "samples.jsonl").stat().st_size
    evaluate(job_on(few_digits), CONFIGS, batch_size=4, out=tmp_path / "out")
    assert (tmp_path / "out" / "samples.jsonl").stat().st_size == size  # tried again, in vain
    file.write_bytes(content)
    mended = evaluate(job_on(few_digits), CONFIGS, batch_size=4, out=tmp_path / "out")
    assert without_time(mended) == without_time(evaluate(job_on(few_digits), CONFIGS, batch_size=4))


def refuses(job, *positions):
    """Let the processor refuse some samples."""
    prepare = job.prepare

    def picky(samples):
        if any(sample.position in positions for sample in samples):
            raise RuntimeError("I do not like it\nat all")
        return prepare(samples)

    job.prepare = picky
    return job


def test_a_sample_that_the_processor_refuses_is_skipped(few_digits, tmp_path):
    results = evaluate(refuses(job_on(few_digits), 2, 4, 5, 6, 7), CONFIGS, batch_size=4, out=tmp_path)
    assert results.data["num_samples"] == 3
    assert [skipped["reason"] for skipped in results.data["skipped"]] == ["RuntimeError: I do not like it."] * 5
    again = evaluate(refuses(job_on(few_digits), 2, 4, 5, 6, 7), CONFIGS, batch_size=4, out=tmp_path)
    assert again.to_dict() == results.to_dict()
    variants, notes = with_controls(refuses(job_on(few_digits), 2, 4, 5, 6, 7), CONFIGS, batch_size=4)
    assert (len(variants), notes) == (6, [])
    with pytest.raises(DataError, match=r"None of the 8 samples.*RuntimeError: I do not like it"):
        evaluate(refuses(job_on(few_digits), *range(8)), [], batch_size=4)


def test_samples_that_do_not_go_together_are_no_reason_to_skip_them(few_digits):
    job = job_on(few_digits)
    prepare = job.prepare

    def alone(samples):
        (sample,) = samples
        return prepare([sample])

    job.prepare = alone
    with pytest.raises(DataError, match=r"not in one batch \(ValueError: too many values.*--batch-size 1"):
        evaluate(job, [], batch_size=4)
    assert evaluate(job, [], batch_size=1).data["num_samples"] == 8


# Time


def test_speeds_of_different_runs_are_not_compared(few_digits, tmp_path):
    first = evaluate(job_on(few_digits), CONFIGS[:1], batch_size=4, out=tmp_path)

    def slow(record):
        if "seconds" not in record:
            return record
        return {**record, "seconds": {name: 1000 * value for name, value in record["seconds"].items()}}

    change(tmp_path, slow)
    before = (tmp_path / "samples.jsonl").read_text()
    results = evaluate(job_on(few_digits), CONFIGS, batch_size=4, out=tmp_path)
    unmerged, same, new = results.rows
    assert unmerged["speedup"] == 1
    assert same["speedup"] == pytest.approx(first.rows[1]["speedup"])
    assert 0.01 < new["speedup"] < 100
    written = (tmp_path / "samples.jsonl").read_text()
    assert written.startswith(before)
    assert len(results_in(tmp_path)) == 8 * 3  # what the unmerged model gives is not written twice
    assert evaluate(job_on(few_digits), CONFIGS, batch_size=4, out=tmp_path).to_dict() == results.to_dict()
    assert (tmp_path / "samples.jsonl").read_text() == written


def test_without_times_to_compare_there_is_no_speedup(few_digits, tmp_path):
    evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)
    results = evaluate(job_on(few_digits), CONFIGS[:1], batch_size=4, out=tmp_path, speedups=False)
    assert [row["speedup"] for row in results.rows] == [1, None]
    json.loads(FORMATS["json"](results))
    assert "| - |" in FORMATS["md"](results)


def test_each_variant_is_warmed_up_once(few_digits):
    job = job_on(few_digits)
    forwards, run = [], job.run
    job.run = lambda model, inputs: forwards.append(len(inputs["pixel_values"])) or run(model, inputs)
    evaluate(job, CONFIGS, batch_size=4)
    # Two batches with three variants; each variant's warm-up and memory; the unmerged model's tokens; more rounds.
    assert forwards == [4] * (2 * 3 + 2 * 3 + 1 + (ROUNDS - 2) * 3)


def test_results_say_when_and_with_what_they_were_measured(few_digits, tmp_path, caplog):
    first = evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)
    assert datetime.fromisoformat(first.environment["date"]).utcoffset() == timedelta(0)
    assert "earlier_sessions" not in first.environment

    def older(record):
        if "environment" not in record:
            return record
        environment = record["environment"]
        packages = {**environment["packages"], "transformers": "4.0"}
        return {**record, "environment": {**environment, "date": "2020-02-02T02:02:02Z", "packages": packages}}

    change(tmp_path, older)
    read = evaluate(job_on(few_digits), [], batch_size=4, out=tmp_path)
    assert read.environment["date"] == "2020-02-02T02:02:02Z"  # nothing was measured
    assert not caplog.text
    results = evaluate(job_on(few_digits), CONFIGS[:1], batch_size=4, out=tmp_path)
    assert "transformers 4.0; resuming with" in caplog.text
    assert results.environment["packages"]["transformers"] == transformers.__version__
    (earlier,) = results.environment["earlier_sessions"]
    assert earlier["packages"]["transformers"] == "4.0"
    results = evaluate(job_on(few_digits), CONFIGS, batch_size=4, out=tmp_path)  # a third session, just as the second
    assert results.environment["earlier_sessions"] == [earlier]

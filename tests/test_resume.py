"""Runs that are killed and go on, and runs shared among processes: the same results, each sample once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hf_tome import MergeConfig
from hf_tome.evaluation import digits
from hf_tome.evaluation.imagenet import digits_classification
from hf_tome.evaluation.job import JobOptions
from hf_tome.evaluation.records import Records, ResumeError, fingerprint
from hf_tome.evaluation.task import evaluate
from hf_tome.evaluation.tasks import build_job

CONFIGS = [MergeConfig(r=16), MergeConfig(method="mame", threshold=0.8)]
MEASURED = ("samples_per_second", "speedup", "peak_memory_mib")


@pytest.fixture(scope="module")
def digit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    for position, sample in enumerate(digits.load_digits("test").select(range(22))):
        place = folder / "test" / str(sample["label"])
        place.mkdir(parents=True, exist_ok=True)
        sample["image"].save(place / f"{position:02}.png")
    (folder / "test" / "3" / "broken.png").write_bytes(b"not an image")
    return folder


def job_on(folder, **options):
    job = build_job("image-classification", JobOptions(str(digits.MODEL_DIR), str(folder), **options))
    job.chunk = 8
    return job


def without_time(results):
    values = results.to_dict() if not isinstance(results, dict) else results
    rows = [{key: value for key, value in row.items() if key not in MEASURED} for row in values["rows"]]
    run = {key: value for key, value in values["run"].items() if key != "processes"}
    return {"run": run, "data": values["data"], "rows": rows}


def lines(folder):
    return [json.loads(line) for file in sorted(folder.glob("samples*.jsonl")) for line in file.open()]


def results_in(folder):
    return [(record["variant"], record["sample"]) for record in lines(folder) if "ranked" in record]


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


def test_a_finished_run_is_only_read(digit_folder, tmp_path):
    first = evaluate(job_on(digit_folder), CONFIGS, batch_size=4, out=tmp_path)
    job = job_on(digit_folder)
    job.run = job.prepare = None
    again = evaluate(job, CONFIGS, batch_size=4, out=tmp_path)
    assert again.to_dict() == first.to_dict()
    more = evaluate(job_on(digit_folder), [*CONFIGS, MergeConfig(r=8)], batch_size=4, out=tmp_path)
    assert [row["name"] for row in more.rows][-1] == "r=8"
    assert more.rows[1] == first.rows[1]


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
    assert "Out of memory with batches of 8; going on with 4." in caplog.text
    assert "Out of memory with batches of 4; going on with 2." in caplog.text


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
    # One process goes on with what two began.
    again = subprocess.run([sys.executable, "-m", "hf_tome", *command(digit_folder, tmp_path / "two")], **options)
    assert without_time(json.loads(again.stdout)) == without_time(single)


def test_a_process_that_is_killed_loses_nothing(digit_folder, tmp_path):
    run = [sys.executable, "-m", "hf_tome", *command(digit_folder, tmp_path)]
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    file = tmp_path / "samples.jsonl"
    while process.poll() is None and not (file.exists() and file.read_text().count("ranked") >= 8):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = results_in(tmp_path)
    done = subprocess.run(run, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert json.loads(done.stdout)["data"]["num_samples"] == 22
    after = results_in(tmp_path)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 44


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_said():
    records = Records({}, Path("/dev/full"))
    with pytest.raises(OSError, match=r"No space left on device: what was finished before is kept in .*goes on"):
        records.add([{"variant": "unmerged", "sample": 0}])

"""Results on disk: one run at a time, and nothing is trusted that was not checked."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from hf_tome import MergeConfig
from hf_tome.cli.app import run
from hf_tome.evaluation.reporting import model_card
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.store.lock import LockedError, lock_folder
from hf_tome.evaluation.store.run_store import ResumeError
from hf_tome.evaluation.tasks.classification.image_classification import digits_classification

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def few_digits():
    job = digits_classification()
    job.data.rows = job.data.rows.select(range(4))
    return job


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The lines and the results of a run."""
    folder = tmp_path_factory.mktemp("run")
    results = evaluate(few_digits(), [MergeConfig(r=16)], batch_size=4, out=folder)
    return (folder / "samples.jsonl").read_text().splitlines(), results


def resume(folder):
    return evaluate(few_digits(), [MergeConfig(r=16)], batch_size=4, out=folder)


# Records


WRONG_FIELDS = [
    ("sample", "0"),
    ("sample", True),
    ("sample", -1),
    ("sample", [0]),
    ("tokens", None),
    ("gflops", "many"),
    ("name", 3),
    ("session", 1),
    ("variant", None),
    ("ranked", "3"),
    ("ranked", [1.5]),
    ("label", "cat"),
    ("label", None),
    ("label", True),
]


@pytest.mark.parametrize(("field", "value"), WRONG_FIELDS)
@pytest.mark.parametrize("missing", [False, True])
def test_a_result_of_wrong_types_is_one_clear_error(finished, tmp_path, field, value, missing):
    records = [json.loads(line) for line in finished[0]]
    record = next(record for record in records if record.get("variant") == "r=16" and "ranked" in record)
    record.update({field: value})
    if missing and field != "variant":
        del record[field]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ResumeError, match=rf"samples\.jsonl has a line|holds a record of sample.*'{field}'") as error:
        resume(tmp_path)
    assert field in str(error.value)
    assert "--restart" in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        '{"session": "x", "environment": 3}',
        '{"session": "x", "variant": "unmerged", "peak_memory_mib": "much"}',
        '{"session": "x", "round": [0, 0], "seconds": {"unmerged": -2}}',
        '{"session": "x", "sample": 0, "name": "a", "skipped": ["why"]}',
        '{"session": "x"}',
        "[" * 100_000,
    ],
)
def test_a_line_of_wrong_types_is_one_clear_error(finished, tmp_path, line):
    (tmp_path / "samples.jsonl").write_text("\n".join([*finished[0], line, ""]))
    with pytest.raises(ResumeError, match=r"a line that is none of a run's.*--restart"):
        resume(tmp_path)


def test_samples_are_not_appended_through_a_link(finished, tmp_path):
    (tmp_path / "mine").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samples.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="A symbolic link is not written through"):
        resume(tmp_path / "out")
    assert (tmp_path / "mine").read_text() == ""


# Results


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(rows=[1]),
        lambda values: values.update(data=[]),
        lambda values: values["data"].update(num_samples="many"),
        lambda values: values["data"].update(skipped=[{"sample": 1}]),
        lambda values: values["rows"][0].update(top1="good"),
        lambda values: values["rows"][1].update(speedup=float("inf")),
        lambda values: values["rows"][1].update(config={"r": "x"}),
        lambda values: values["rows"][1].update(name=None),
    ],
)
def test_results_of_wrong_types_are_one_clear_error(finished, tmp_path, change, capsys):
    values = json.loads(json.dumps(finished[1].to_dict()))
    change(values)
    (tmp_path / "results.json").write_text(json.dumps(values))
    assert run(["card", str(tmp_path), "--out", str(tmp_path / "card")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not hold" in line


def test_results_survive_a_round_trip(finished, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(finished[1].to_dict()))
    assert model_card.read_results(tmp_path) == finished[1]


@pytest.mark.parametrize("dataset", ["数据/集", "a" * 150 + "/" + "b" * 150, "../../x", "a/b", ""])
def test_names_of_result_files(finished, tmp_path, dataset):
    results = finished[1]
    *_, entries = model_card.write_results_card(
        results, results.rows[1], tmp_path, dataset=dataset or None, force=True
    )
    assert entries.parent == tmp_path / ".eval_results"
    assert entries.stem
    (first, *_) = yaml.safe_load(entries.read_text())
    assert first["dataset"]["id"] == (dataset or results.data["id"])


def test_different_names_are_different_files():
    names = ["a-b/c", "a/b-c", "a.b/c", "a/b/c", "数", "集", "", "x" * 200, "x" * 201, "a/b", "a-b"]
    assert len({model_card.file_stem(name) for name in names}) == len(names)
    assert model_card.file_stem("me/data") == "me-data"


# One run at a time


def test_a_second_run_is_refused_at_once(tmp_path):
    hold = (
        "import sys, pathlib, time\nfrom hf_tome.evaluation.store.lock import lock_folder\n"
        f"with lock_folder(pathlib.Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=r"Another run is writing to .*another --out"):
        evaluate(few_digits(), [], batch_size=4, out=tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()
    other.kill()  # a killed run leaves no lock behind
    other.communicate()
    evaluate(few_digits(), [], batch_size=4, out=tmp_path)


def test_a_process_can_lock_a_folder_twice_and_leaves_it_open(tmp_path):
    with lock_folder(tmp_path / "new"), lock_folder(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    with pytest.raises(RuntimeError), lock_folder(tmp_path / "new"):
        raise RuntimeError
    with lock_folder(tmp_path / "new"):
        pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link"), lock_folder(tmp_path / "other"):
        pass
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_the_same_line(tmp_path, digit_folder, number):
    model = str(digits_model())
    command = ["eval", "--model", model, "--data", str(digit_folder), "--out", str(tmp_path), "--device", "cpu"]
    slow = (
        "import sys, time\nimport hf_tome.evaluation.running.runner as runner\n"
        "def evaluate(*_, **__):\n    print('running', flush=True)\n    time.sleep(60)\n"
        "runner.evaluate = evaluate\nfrom hf_tome.cli.app import main\nmain(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    assert process.stdout.readline() == "running\n"
    begun = time.monotonic()
    process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    assert printed.splitlines()[-1] == "interrupted; the same command resumes where it stopped"
    assert process.returncode == 130
    assert time.monotonic() - begun < 20


def digits_model():
    from hf_tome.evaluation.data.digits import MODEL_DIR

    return MODEL_DIR

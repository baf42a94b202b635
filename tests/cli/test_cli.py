"""`hf-tome` as a user meets it: results on standard output, one-line errors, exit statuses."""

import csv
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hf_tome import __version__
from hf_tome.cli import common, tables
from hf_tome.cli.app import COMMANDS, run
from hf_tome.cli.common import Format
from hf_tome.cli.groups import GROUPS, ORDER
from hf_tome.evaluation.data.digits import MODEL_DIR
from hf_tome.evaluation.reporting.tables import FORMATS

pytestmark = pytest.mark.usefixtures("costs_hardly_measured")


def fails(capsys, *arguments, status=1):
    """Run the command in this process; return its error, which is one line on standard error and nothing else."""
    assert run([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_one_worked_example(capsys, command):
    assert run([command, "--help"]) == 0
    assert capsys.readouterr().out.count(f"Example:\n    hf-tome {command}") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_options_stand_in_groups(capsys, command):
    assert run([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    groups = [line.rstrip(":") for line in lines if line.rstrip(":") in ORDER]
    assert groups == [name for name in ORDER if name in groups]
    assert "Output" in groups
    assert max(map(len, lines[: lines.index(next(line for line in lines if "Example:" in line))])) <= 80


def test_groups_name_options_that_there_are():
    given = {parameter for function, _ in COMMANDS.values() for parameter in inspect.signature(function).parameters}
    assert {name for names in GROUPS.values() for name in names} <= given | {"help"}


def test_shipped_models_and_data_have_names(capsys):
    evaluated = ["eval", "--model", "digits-vit", "--data", "digits", "--limit", "2", "--format", "json"]
    assert run(evaluated) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"]["model"], found["data"]["id"], found["data"]["num_samples"]) == ("digits-vit", "digits", 2)
    assert "There is no local folder of that name" in fails(
        capsys, *evaluated[:1], "--model", "digits-vitt", *evaluated[3:]
    )


def test_without_a_terminal_a_line_from_time_to_time(capsys, monkeypatch):
    monkeypatch.setattr(common.ProgressLines, "EVERY", 0.0)
    with common.progress("digits") as update:
        update(16, 64)
    assert capsys.readouterr().err == "digits: 16 of 64 (25%)\n"
    monkeypatch.setattr(common.ProgressLines, "EVERY", 1000.0)
    with common.progress("digits") as update:
        update(16, 64)
    assert capsys.readouterr().err == ""


def test_formats_are_those_of_the_output():
    assert {form.value for form in Format} == set(FORMATS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"demo"}))
def test_every_command_takes_a_format(capsys, command):
    assert run([command, "--help"]) == 0
    assert "--format" in capsys.readouterr().out


@pytest.mark.parametrize("form", Format)
def test_rows_in_every_format(capsys, form):
    tables.write_rows([{"file": "a,b.png", "bytes": 7, "share": None}, {"file": "c", "bytes": 8, "share": 0.5}], form)
    assert (
        capsys.readouterr().out
        == {
            Format.table: "file     bytes  share\na,b.png  7      -\nc        8      0.5\n",
            Format.csv: 'file,bytes,share\n"a,b.png",7,\nc,8,0.5\n',
            Format.md: "| file | bytes | share |\n|---|---|---|\n| a,b.png | 7 | - |\n| c | 8 | 0.5 |\n",
            Format.json: json.dumps(
                {"rows": [{"file": "a,b.png", "bytes": 7, "share": None}, {"file": "c", "bytes": 8, "share": 0.5}]},
                indent=2,
            )
            + "\n",
        }[form]
    )


@pytest.mark.parametrize("form", Format)
def test_env(capsys, form):
    assert run(["env", "--format", form.value]) == 0
    printed = capsys.readouterr().out
    assert "transformers" in printed
    if form is Format.json:
        assert json.loads(printed)["packages"]["torch"]


def test_eval_end_to_end_in_a_process_of_its_own(digit_folder, tmp_path):
    """Standard output is the JSON alone, standard error is silent when piped, and the files are there."""
    arguments = ["--task", "image-classification", "--model", MODEL_DIR, "--data", digit_folder, "--split", "test"]
    arguments += ["--config", "r=0", "--config", "r=16", "--config", "method=mame,threshold=0.8,layers=0-3"]
    arguments += ["--limit", 8, "--batch-size", 4, "--seed", 0, "--out", tmp_path / "results", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "hf_tome", "eval", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads(done.stdout)
    assert [row["name"] for row in results["rows"]] == ["unmerged", "r=16", "method=mame,threshold=0.8,layers=0-3"]
    assert results["data"]["num_samples"] == 8
    assert results == json.loads((tmp_path / "results" / "results.json").read_text())
    written = {file.name for file in (tmp_path / "results").iterdir()}
    assert written == {".lock", "results.json", "report.md", "pareto.png", "samples.jsonl"}


def test_eval_prints_csv(capsys, digit_folder):
    assert run(["eval", "--model", str(MODEL_DIR), "--data", str(digit_folder), "--format", "csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["config"] == "unmerged"


def test_show_writes_a_picture(capsys, digit_folder, tmp_path):
    image = next(digit_folder.rglob("*.png"))
    out = tmp_path / "new" / "merged.png"
    arguments = ["show", image, "--model", MODEL_DIR, "--config", "method=mame", "--out", out, "--all-blocks"]
    assert run([*map(str, arguments), "--format", "csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["file"] == str(out)
    assert int(row["bytes"]) == out.stat().st_size
    assert (row["config"], row["patches"]) == ("method=mame,threshold=0.8", "256")
    assert 0 < int(row["tokens"]) < 256
    with Image.open(out) as picture:
        assert picture.width > 4 * 192


def test_demo_writes_everything(capsys, tmp_path):
    assert run(["demo", "--limit", "10", "--out", str(tmp_path / "demo"), "--format", "md"]) == 0
    assert capsys.readouterr().out.startswith("| config | top-1 % |")
    written = {file.name for file in (tmp_path / "demo").iterdir()}
    assert written == {"results.json", "report.md", "pareto.png", "merged.png"}


EVAL = ("eval", "--model", MODEL_DIR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*EVAL, "--data", "{digits}", "--split", "tset"), "no split 'tset'; it has 'test'"),
        ((*EVAL, "--data", "{digits}", "--config", "bogus"), "neither a file nor fields"),
        ((*EVAL, "--data", "{digits}", "--config", "r=8,layers=5-2"), "5-2 runs backwards; write 2-5"),
        ((*EVAL, "--data", "{digits}", "--config", "r=-1"), "it takes an integer of at least 0"),
        ((*EVAL, "--data", "{digits}", "--config", "r=[1,1,1,1,1,1,1,1,1]"), "the model has 8"),
        ((*EVAL, "--data", "{digits}", "--task", "juggling"), "Unknown task 'juggling'"),
        ((*EVAL, "--data", "{digits}", "--device", "toaster"), "Unknown device 'toaster'"),
        ((*EVAL, "--data", "{digits}", "--device", "meta"), "Device 'meta' cannot be used here"),
        ((*EVAL, "--data", "{tmp}"), "No image files in"),
        ((*EVAL, "--data", "./absent"), "./absent is not a folder"),
        (("eval", "--model", "./absent", "--data", "{digits}"), "./absent is not a folder"),
        (("show", __file__, "--model", MODEL_DIR), "as an image"),
    ],
)
def test_bad_input_is_one_line(capsys, digit_folder, tmp_path, arguments, message):
    texts = [str(argument).format(digits=digit_folder, tmp=tmp_path) for argument in arguments]
    assert message in fails(capsys, *texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evil",), "No such command 'evil'"),
        (EVAL, "Missing option '--data'"),
        ((*EVAL, "--data", "x", "--format", "xml"), "xml"),
        ((*EVAL, "--data", "x", "--batch-size", "0"), "'--batch-size'"),
        (
            (*EVAL, "--data", "x", "--clips", "7"),
            "--clips does not apply to the task image-classification; it is for video-",
        ),
        (
            (*EVAL, "--data", "x", "--templates", __file__),
            "; it is for zero-shot-image-classification, zero-shot-object-detection. Leave",
        ),
        ((*EVAL, "--data", "x", "--class-names", "no.txt"), "'no.txt' does not exist"),
        ((*EVAL, "--data", "x", "--prompt", "y"), "it is for image-to-text, visual-question-answering. Leave"),
        (
            (*EVAL, "--data", "x", "--task", "image-to-text", "--labels", __file__),
            "--labels does not apply to the task image-to-text",
        ),
    ],
)
def test_wrong_usage_is_one_line_too(capsys, arguments, message):
    assert message in fails(capsys, *arguments, status=2)


def test_debug_shows_the_traceback(digit_folder):
    with pytest.raises(ValueError, match="tset"):
        run([*map(str, EVAL), "--data", str(digit_folder), "--split", "tset", "--debug"])


def test_unexpected_errors_name_their_kind(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("the sky\nfell")

    monkeypatch.setattr("hf_tome.evaluation.environment.describe_environment", broken)
    assert f"RuntimeError: the sky fell (hf_tome {__version__}; --debug shows where" in fails(capsys, "env")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "interrupted"),
        (("--out", "{tmp}"), "interrupted; the same command resumes where it stopped"),
        (("--out={tmp}", "--restart"), "interrupted; the same command, without --restart, resumes where it stopped"),
    ],
)
def test_an_interrupted_run_is_one_line(capsys, digit_folder, tmp_path, monkeypatch, arguments, said):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_tome.evaluation.running.runner.evaluate", interrupted)
    texts = [str(argument).format(tmp=tmp_path) for argument in (*EVAL, "--data", digit_folder, *arguments)]
    assert run(texts) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == said


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hf_tome ")


def test_no_path_of_a_machine_is_shipped():
    for file in MODEL_DIR.iterdir():
        if file.suffix != ".safetensors":
            assert str(Path.home()) not in file.read_text()

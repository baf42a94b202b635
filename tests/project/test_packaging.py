"""The wheel and the sdist install and run in environments that hold nothing else."""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hf_tome.cli.app import run as run_command
from hf_tome.cli.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("src", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
LOCK = ROOT / "requirements" / "lock.txt"
SIZE = 7_200_000
"""What a wheel may take: 6.3 MB of it are the eight small models that `hf-tome demo` runs without a network."""


def run(*command: object, **options) -> str:
    """Run a command outside of the repository, where no `src` is found by accident; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | options.pop("env", {})
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The wheel and the sdist: those in HF_TOME_TEST_DIST, or built here from a copy of the sources."""
    folder = Path(os.environ.get("HF_TOME_TEST_DIST", tmp_path_factory.mktemp("dist")))
    if "HF_TOME_TEST_DIST" not in os.environ:
        copy = tmp_path_factory.mktemp("copy")
        for name in SOURCES:
            place = ROOT / name
            if place.is_dir():
                shutil.copytree(place, copy / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
            else:
                shutil.copy(place, copy)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy)
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def empty_environment(folder: Path) -> Path:
    """Return the Python of a new environment with torch alone, in the build that TORCH_INSTALL chooses."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    install = shlex.split(os.environ.get("TORCH_INSTALL", "")) or [python, "-m", "pip", "install", "--quiet"]
    run(*install, "--constraint", LOCK, "torch", env={"VIRTUAL_ENV": str(folder)})
    return python


@pytest.mark.slow
def test_they_hold_the_package_alone(files):
    with zipfile.ZipFile(files["wheel"]) as wheel:
        names = wheel.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"hf_tome"}
    assert "hf_tome/py.typed" in names
    with tarfile.open(files["sdist"]) as sdist:
        inner = {name.partition("/")[2].partition("/")[0] for name in sdist.getnames()}
    assert inner - {""} == {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "src"}
    for file in files.values():
        assert file.stat().st_size < SIZE, file.name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_they_run_in_an_empty_environment(files, kind, tmp_path):
    python = empty_environment(tmp_path / "venv")
    command = python.with_name("hf-tome")

    run(python, "-m", "pip", "install", "--quiet", "--constraint", LOCK, files[kind])
    assert "demo" in run(command, "--help", cwd=tmp_path)
    assert "transformers" in run(command, "env", cwd=tmp_path)
    use = "import hf_tome, torch, transformers as tf; m = tf.ViTModel(tf.ViTConfig(num_hidden_layers=2)); "
    run(python, "-c", use + "hf_tome.apply(m, hf_tome.MergeConfig(r=8)); m(torch.zeros(1, 3, 224, 224))", cwd=tmp_path)
    lacking = subprocess.run([command, "demo"], capture_output=True, text=True, cwd=tmp_path)
    assert lacking.returncode == 1
    assert "hf_tome[eval]" in lacking.stderr, lacking.stderr

    run(python, "-m", "pip", "install", "--quiet", "--constraint", LOCK, f"hf_tome[eval] @ {files[kind].as_uri()}")
    assert "r=8" in run(command, "demo", "--limit", "40", "--out", tmp_path / "demo", cwd=tmp_path)
    assert (tmp_path / "demo" / "report.md").is_file()


def test_a_missing_module_is_said_with_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "hf_tome.evaluation.data.digits", raising=False)
    assert run_command(["demo", "--limit", "4"]) == 1
    assert capsys.readouterr().err.endswith("This needs the extra 'eval': pip install 'hf_tome[eval]'\n")


def test_every_extra_that_is_advised_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    distributions = {"PIL": "pillow", "sklearn": "scikit-learn"}
    for module, extra in EXTRAS.items():
        named = {Requirement(line).name for line in project["optional-dependencies"][extra]}
        assert distributions.get(module, module) in named, module

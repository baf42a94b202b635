"""Every benchmark of the repository runs, and prints its table; how fast anything is, is not asked here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
ON_A_GPU = ("gpu", "gpu_attention", "gpu_step", "gpu_diffusion")
NO_BENCHMARKS = ("common", "published_weights", *ON_A_GPU)
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NO_BENCHMARKS)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs(script, data, tmp_path):
    command = [sys.executable, FOLDER / f"{script}.py", "--quick", "--out", tmp_path / "x.json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_TOME_TEST_DATA": str(data)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| ")
    assert (tmp_path / "x.json").read_text().startswith("{")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_on_a_cpu(tmp_path):
    options = [f"PYTHON={sys.executable}", "GPU_OPTIONS=--quick --device cpu", f"GPU_OUT={tmp_path}"]
    done = subprocess.run(["make", "gpu", *options], cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ON_A_GPU:
        rows = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        assert rows, name
        assert not any("Error" in (row.get("why") or "") for row in rows), rows

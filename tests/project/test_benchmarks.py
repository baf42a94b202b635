"""Every benchmark of the repository runs, and prints its table; how fast anything is, is not asked here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
ON_A_CPU = ["--device", "cpu"]
OPTIONS = {"gpu": ON_A_CPU, "gpu_attention": ON_A_CPU, "gpu_step": ON_A_CPU, "gpu_diffusion": ON_A_CPU}
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("common", "published_weights"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs(script, data, tmp_path):
    command = [
        sys.executable,
        FOLDER / f"{script}.py",
        "--quick",
        *OPTIONS.get(script, []),
        "--out",
        tmp_path / "x.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_TOME_TEST_DATA": str(data)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| ")
    assert (tmp_path / "x.json").read_text().startswith("{")

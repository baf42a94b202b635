"""integrations/accelerate: the launch files start several processes that give what one gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import results_in, without_time

from hf_tome import MergeConfig
from hf_tome.evaluation.data import digits
from hf_tome.evaluation.options import JobOptions
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.tasks.registry import build_job

pytest.importorskip("accelerate", reason="several processes meet through accelerate")

RECIPE = Path(__file__).resolve().parents[2] / "integrations" / "accelerate"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def command(data, out):
    arguments = ["eval", "--model", digits.MODEL_DIR, "--data", data, "--out", out, "--batch-size", 4]
    return [*map(str, arguments), "--config", "r=16", "--device", "cpu", "--format", "json"]


def single(data):
    job = build_job("image-classification", JobOptions(str(digits.MODEL_DIR), str(data)))
    return without_time(evaluate(job, [MergeConfig(r=16)], batch_size=4))


def check(stdout, out, data):
    found = json.loads(stdout)  # printed once
    assert found["run"]["processes"] == 2
    assert without_time(found) == single(data)
    assert {file.name for file in out.glob("samples*")} == {"samples.jsonl", "samples-1.jsonl"}
    pairs = results_in(out)
    assert len(pairs) == len(set(pairs)) == 24  # twelve digits, unmerged and merged


def test_accelerate_launch_gives_what_one_process_gives(digit_folder, tmp_path):
    launch = [*LAUNCH, "--config_file", str(RECIPE / "one_machine.yaml"), "--main_process_port", "0"]
    run = [*launch, "--module", "hf_tome", *command(digit_folder, tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    check(done.stdout, tmp_path, digit_folder)


def free_port():
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def two_torchruns(port):
    """Return the launchers of two machines, which are both this one here."""
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
    run = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meet]
    return [[*run, "--local-addr", "127.0.0.1", "-m"]] * 2


def two_accelerates(port):
    meet = ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--num_processes", "2"]
    run = [*LAUNCH, "--config_file", str(RECIPE / "several_machines.yaml"), *meet]
    return [[*run, "--machine_rank", rank, "--module"] for rank in "01"]


@pytest.mark.slow
@pytest.mark.parametrize("launchers", [two_torchruns, two_accelerates])
def test_two_launchers_meet_as_on_two_machines(launchers, digit_folder, tmp_path):
    runs = [
        subprocess.Popen(
            [*launch, "hf_tome", *command(digit_folder, tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for launch in launchers(free_port())
    ]
    try:
        printed = [process.communicate(timeout=300) for process in runs]
    finally:
        for process in runs:
            process.kill()
    assert [process.returncode for process in runs] == [0, 0], printed
    check("".join(out for out, _ in printed), tmp_path, digit_folder)


@pytest.mark.parametrize("name", ["one_machine", "several_machines"])
def test_launch_files_are_what_accelerate_reads(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(RECIPE / f"{name}.yaml"))
    assert config.distributed_type == "MULTI_GPU"
    assert config.num_processes == yaml.safe_load((RECIPE / f"{name}.yaml").read_text())["num_processes"] > 1


def test_the_slurm_script_is_a_script():
    subprocess.run(["bash", "-n", str(RECIPE / "evaluate.slurm")], check=True)

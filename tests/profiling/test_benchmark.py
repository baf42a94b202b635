"""The measuring itself: what is measured, against what, and what is said about it. Nothing here depends on time."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from zoo import ZOO

from hf_tome import MergeConfig, apply, report
from hf_tome.patching.patch import is_patched
from hf_tome.profiling.benchmark import benchmark, why_no_speedup
from hf_tome.profiling.example_inputs import example_inputs
from hf_tome.profiling.measure import synchronize
from hf_tome.profiling.rounds import Spread, clock_for, doubt_of_load, doubts, interleave, ratio
from hf_tome.profiling.slice_oracle import make_oracle, shallow_copy

VIT = next(zoo for zoo in ZOO if zoo.name == "vit")
CPU = torch.device("cpu")


@pytest.mark.parametrize("zoo", ZOO, ids=lambda zoo: zoo.name)
def test_the_oracle_cuts_to_the_schedule(zoo):
    model = zoo.make()
    merged = apply(shallow_copy(model), MergeConfig(r=6))
    with torch.no_grad():
        zoo.run(merged)
        tokens = [[tower.computed[0][0], *(after for _, after in tower.computed)] for tower in report(merged).towers]
        oracle = make_oracle(shallow_copy(model), tokens)
        zoo.run(oracle)
    assert [tower.computed for tower in report(oracle).towers] == [tower.computed for tower in report(merged).towers]
    assert not any(is_patched(module) for module in model.modules())


def test_a_twin_shares_the_weights():
    model = apply(VIT.make(), MergeConfig(r=6))
    copy = shallow_copy(model)
    assert all(one is other for one, other in zip(model.parameters(), copy.parameters(), strict=True))
    assert not any(is_patched(module) for module in copy.modules())
    assert any(is_patched(module) for module in model.modules())


@pytest.mark.parametrize("config", [MergeConfig(r=6), MergeConfig(method="mame", threshold=0.3, layers=range(3))])
def test_benchmark(config):
    model = VIT.make()
    result = benchmark(model, example_inputs(model, 2), config, rounds=3, warmup=1, clock="process")
    assert set(result.seconds) == set(result.images_per_second) == set(result.peak_memory_mib)
    assert set(result.seconds) == {"unmerged", "merged", "oracle"}
    assert result.images_per_second["merged"] == pytest.approx(
        result.images_per_second["unmerged"] * result.speedup.median
    )
    assert result.batch_size == 2
    assert result.tokens[1] < result.tokens[0] == 65
    assert result.gflops < result.gflops_unmerged
    assert not any(is_patched(module) for module in model.modules())
    assert result.to_dict()["config"] == config.to_dict()


def test_interleaved_runs_take_turns():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2, warmup=1)
    assert "".join(calls) == "baabba"
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_ratios_are_of_pairs():
    assert ratio({"slow": [2.0, 9.0, 4.0], "fast": [1.0, 3.0, 2.0]}, "slow", "fast").median == 2
    assert Spread.of([1.0]) == Spread(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="`clock` is 'sun'"):
        benchmark(VIT.make(), VIT.inputs(1), MergeConfig(r=1), clock="sun")


@pytest.mark.parametrize(
    ("changes", "speedup", "oracle", "says"),
    [
        ({}, 1.5, 1.5, None),
        ({"after": 197, "notes": ("nothing merged in the last forward pass; lower `threshold`",)}, 1, 1, "threshold"),
        ({"gflops": 0.95}, 1, 1.02, "leaves 95% of the multiply-adds"),
        ({"before": 50, "after": 20}, 1, 1.2, "too few tokens"),
        ({}, 0.9, 1.0, "more rounds or the clock `process`"),
        ({"device": "cuda"}, 0.9, 1.0, "launch-bound"),
        ({"backend": "eager"}, 1, 1.2, "eager attention"),
        ({}, 1, 1.2, "1.20 times as fast"),
    ],
)
def test_why_there_is_no_speedup(changes, speedup, oracle, says):
    row = {"before": 197, "after": 100, "gflops": 0.6, "backend": "sdpa", "notes": (), **changes}
    tower = SimpleNamespace(
        tokens=((row["before"], row["after"]),),
        gflops=row["gflops"],
        gflops_unmerged=1.0,
        backend=row["backend"],
        notes=row["notes"],
        is_projected=False,
    )
    why = why_no_speedup(tower, speedup, oracle, 1, torch.device(changes.get("device", "cpu")))
    assert why is None if says is None else says in why


def test_importing_is_light():
    """The modules that take seconds, and those of optional packages, are loaded where they are used."""
    heavy = ("datasets", "diffusers", "matplotlib", "onnx", "transformers.modeling_utils", "transformers.pipelines")
    code = f"import sys, hf_tome; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What cannot be trusted


def test_any_accelerator_is_waited_for(monkeypatch):
    """Speeds on MPS and XPU were times of launches: only CUDA was waited for."""
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    for name in ("mps", "xpu", "cuda:0", "cpu"):
        synchronize(torch.device(name))
    assert [device.type for device in waited] == ["mps", "xpu", "cuda"]


def test_the_clock_fits_the_device():
    assert (clock_for("cpu"), clock_for("mps"), clock_for("cpu", "wall")) == ("process", "wall", "wall")
    with pytest.raises(ValueError, match="does not count the time of cuda"):
        clock_for("cuda", "process")
    with pytest.raises(ValueError, match="`clock` is 'sun'; it takes one of 'auto', 'wall', 'process'"):
        clock_for("cpu", "sun")


@pytest.mark.parametrize(
    ("spread", "allowed", "message"),
    [
        (Spread(1.3, 1.25, 1.35), 1.4, None),
        (Spread(1.05, 0.9, 1.2), 1.4, "is smaller than its spread"),
        (Spread(4.67, 4.6, 4.7), 1.5, r"4\.67, is more than its multiply-adds allow \(1\.50\)"),
        (Spread(1.3, 1.28, 1.32), None, None),
    ],
)
def test_doubtful_speedups_are_said(spread, allowed, message):
    found = list(doubts("r=8", spread, allowed))
    assert len(found) == (message is not None)
    assert message is None or re.search(message, found[0])


def test_a_loaded_machine_is_said():
    assert doubt_of_load(2.0, 2) is doubt_of_load(None, 2) is None
    assert "load of the machine (5.0) exceeds its 2 cores" in doubt_of_load(5.0, 2)

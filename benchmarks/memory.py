"""Peak memory at 512 px, in inference and in training.

Eight blocks of ViT-S width, batch 4, 1,024 patches, ToMe with r=120, float32, sdpa, weights of 57 MiB. Resident: by
how much the peak of the process's resident memory (Linux) exceeds that of the loaded model, each case in a process of
its own. Tensors: the peak of what torch's operators return and is alive, gradients included, weights not.

    python benchmarks/memory.py [--quick] [--out benchmarks/measured/memory.json]
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
from common import Row, run
from transformers import ViTConfig, ViTForImageClassification

from hf_tome import MergeConfig, apply
from hf_tome.adapters.encoders.families.dims import encoder_shape
from hf_tome.inspection.flops import planned_tokens
from hf_tome.profiling.example_inputs import example_inputs
from hf_tome.profiling.measure import peak_memory_mib
from hf_tome.profiling.slice_oracle import make_oracle

MIB = 2**20
TARGETS = {"inference": 0.75, "training": 0.6}
VARIANTS = ("unmerged", "merged", "oracle")
COLUMNS = {
    "pass": "pass",
    "measured": "measured",
    "unmerged_mib": "unmerged MiB",
    "merged_mib": "merged MiB",
    "oracle_mib": "oracle MiB",
    "share": "merged, of unmerged",
    "oracle_share": "oracle, of unmerged",
}


class Case:
    """A variant of the model, one step of a kind, and the two measures of its memory."""

    def __init__(self, variant: str, kind: str, batch_size: int):
        torch.manual_seed(0)
        small = {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "intermediate_size": 1536}
        self.model = ViTForImageClassification(ViTConfig(image_size=512, **small)).eval()
        self.inputs = example_inputs(self.model, batch_size)
        self.kind = kind
        config = MergeConfig(r=120)
        plan = planned_tokens(encoder_shape(self.model.config), config)
        if variant == "merged":
            apply(self.model, config)
        elif variant == "oracle":
            make_oracle(self.model, [[plan[0][0], *(after for _, after in plan)]])

    def step(self) -> None:
        with torch.inference_mode(self.kind == "inference"):
            logits = self.model(**self.inputs).logits
        if self.kind == "training":
            logits.square().mean().backward()

    def tensors(self) -> float:
        weights = sum(parameter.nbytes for parameter in self.model.parameters()) / MIB
        return peak_memory_mib(self.step, self.model, self.model.device) - weights

    def resident(self) -> float:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = status("VmRSS")
        self.step()
        return status("VmHWM") - before


def status(name: str) -> float:
    """Return a value of this process's memory in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measure_case(measured: str, variant: str, kind: str, batch_size: int) -> float:
    torch.set_num_threads(1)
    return getattr(Case(variant, kind, batch_size), measured)()


def measure(quick: bool) -> list[Row]:
    rows = []
    # One task a process: memory that an earlier case has left would be used again unseen.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for measured in ("resident", "tensors"):
            for kind in TARGETS:
                cases = [(measured, variant, kind, 1 if quick else 4) for variant in VARIANTS]
                peak = dict(zip(VARIANTS, pool.starmap(measure_case, cases, chunksize=1)))
                row = {f"{variant}_mib": value for variant, value in peak.items()}
                shares = {
                    "share": peak["merged"] / peak["unmerged"],
                    "oracle_share": peak["oracle"] / peak["unmerged"],
                }
                rows.append({"pass": kind, "measured": measured, **row, **shares})
    return rows


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="at most 0.75 of the unmerged model in inference, 0.6 in training",
        reached=lambda row: row["share"] <= TARGETS[row["pass"]],
    )

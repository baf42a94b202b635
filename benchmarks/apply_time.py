"""What merging costs before it runs: `apply` on ViT-L, and importing `hf_tome`.

Processor time of one thread. An import is timed in a process of its own, after `import torch, transformers`.

    python benchmarks/apply_time.py [--quick] [--out benchmarks/measured/apply_time.json]
"""

from __future__ import annotations

import json
import subprocess
import sys

import torch
from common import Row, run
from transformers import ViTConfig, ViTForImageClassification

from hf_tome import MergeConfig, apply, remove
from hf_tome.profiling.rounds import Spread, interleave

LIMITS = {"apply on ViT-L": 0.05, "import hf_tome": 0.3}
UNWANTED = ("datasets", "diffusers", "matplotlib")
COLUMNS = {
    "what": "what",
    "seconds": "seconds",
    "limit": "limit",
    "imports": "imports of datasets, diffusers, matplotlib",
}

IMPORT = f"""
import json, sys, time
import torch, transformers
start = time.process_time()
import hf_tome
print(json.dumps([time.process_time() - start, [name for name in {UNWANTED!r} if name in sys.modules]]))
"""


def apply_seconds(rounds: int) -> Spread:
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    with torch.device("meta"):  # weights are never touched
        model = ViTForImageClassification(ViTConfig(**large))

    def apply_once() -> None:
        apply(model, MergeConfig(r=8))

    seconds = []
    for _ in range(rounds):
        seconds += interleave({"apply": apply_once}, 1, warmup=0, clock="process")["apply"]
        remove(model)
    return Spread.of(seconds)


def import_seconds(rounds: int) -> tuple[Spread, str]:
    seconds, all_imports = [], set()
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        took, imported = json.loads(done.stdout)
        seconds.append(took)
        all_imports |= set(imported)
    return Spread.of(seconds), ", ".join(sorted(all_imports)) or "none"


def measure(quick: bool) -> list[Row]:
    imported, unwanted = import_seconds(2 if quick else 7)
    values = {"apply on ViT-L": (apply_seconds(3 if quick else 20), "-"), "import hf_tome": (imported, unwanted)}
    return [
        {"what": action, "seconds": seconds, "limit": LIMITS[action], "imports": imports}
        for action, (seconds, imports) in values.items()
    ]


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="apply under 50 ms; the import adds under 0.3 s to transformers', and imports none of the three",
        reached=lambda row: row["seconds"].median < row["limit"] and row["imports"] in ("-", "none"),
    )

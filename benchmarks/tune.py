"""What `tune` finds on real photographs: half and 0.7 of the GFLOPs, 0.5 and 0.6 of the time, the image size free.

96 photographs to choose by, the others to confirm on, beside what else costs as much. `docs/tune.md` shows the record.

    python benchmarks/tune.py [--model DEIT_TINY] [--data PHOTOGRAPHS] [--out benchmarks/measured/tune.json] [--quick]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import SHARED_DATA

from hf_tome.evaluation.options import JobOptions
from hf_tome.evaluation.reporting.tables import to_markdown
from hf_tome.evaluation.search.budget.budget import Budget, tune_to_budget
from hf_tome.evaluation.search.budget.controls import CONTROLS
from hf_tome.evaluation.search.budget.trials import FILE
from hf_tome.evaluation.tasks.registry import build_job

UNLABELLED = {"use_labels": False}
CASES: dict[str, dict[str, Any]] = {
    "half": {"budget": Budget(0.5), **UNLABELLED, "also": [0.7]},
    "half of the time": {"budget": Budget(0.5, by="time"), **UNLABELLED, "against": ["smaller images"]},
    "0.6 of the time": {"budget": Budget(0.6, by="time"), **UNLABELLED, "against": ["smaller images"]},
    "half, image size free": {"budget": Budget(0.5), "image_size": "free", "controls": [], "front": ()},
}
QUICK = {"choose": 8, "confirm": 8, "max_evaluations": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(SHARED_DATA / "deit-tiny-patch16-224"))
    parser.add_argument("--data", default=str(SHARED_DATA / "imagenet_sample"))
    parser.add_argument("--split", default="validation")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/measured/tune.json"))
    parser.add_argument("--work", type=Path, help="folder for trials and samples, to resume from")
    parser.add_argument("--only", help="one case")
    parser.add_argument("--against", nargs="+", help="fewer controls, where time is short: names, as 'constant ToMe'")
    parser.add_argument("--quick", action="store_true", help="few samples, to see that it works")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        work = Path(temporary) if arguments.work is None else arguments.work
        for name in CASES:
            if arguments.only in (None, name):
                measure(name, work, arguments)


def measure(name: str, work: Path, arguments: argparse.Namespace) -> None:
    """Run one case, and add it to the record."""
    record: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    job = build_job("image-classification", JobOptions(arguments.model, arguments.data, arguments.split))
    start = time.process_time()
    out, case = work / name.replace(" ", "-"), CASES[name]
    shared = work / "trials.jsonl"  # the search without labels, whatever the budget
    if case.items() >= UNLABELLED.items() and shared.exists() and not (out / FILE).exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(shared, out / FILE)
    options = {"confirm": None, **case, **(QUICK if arguments.quick else {})}
    if arguments.against:
        options["against"] = [control for control in options.get("against", CONTROLS) if control in arguments.against]
    _, results = tune_to_budget(job, out=out, **options)
    if case.items() >= UNLABELLED.items():
        shutil.copy(out / FILE, shared)
    results.run["processor_seconds"] = round(time.process_time() - start, 1)
    record[name] = results.to_dict()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(to_markdown(results))
    print(f"{name}: {'; '.join(results.run['notes'])}", file=sys.stderr)


if __name__ == "__main__":
    main()

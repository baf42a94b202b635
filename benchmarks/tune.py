"""What `tune` finds on real photographs: half and 0.7 of the GFLOPs, 0.5 and 0.6 of the time, the image size free.

96 photographs to choose by, the others to confirm on, beside what else costs as much. `docs/tune.md` shows the record.

    python benchmarks/tune.py [--model DEIT_TINY] [--data PHOTOGRAPHS] [--out benchmarks/measured/tune.json] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hf_tome.evaluation.options import JobOptions
from hf_tome.evaluation.reporting.tables import to_markdown
from hf_tome.evaluation.search.budget.budget import CONTROLS, Budget, tune_to_budget
from hf_tome.evaluation.tasks.registry import build_job

DATA = Path(os.environ.get("HF_TOME_TEST_DATA", "../shared/data"))
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
    parser.add_argument("--model", default=str(DATA / "deit-tiny-patch16-224"))
    parser.add_argument("--data", default=str(DATA / "imagenet_sample"))
    parser.add_argument("--split", default="validation")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/measured/tune.json"))
    parser.add_argument("--work", type=Path, help="folder for trials and samples, to resume from")
    parser.add_argument("--only", help="one case")
    parser.add_argument("--against", nargs="+", help="fewer controls, where time is short: names, as 'constant ToMe'")
    parser.add_argument("--quick", action="store_true", help="few samples, to see that it works")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name, case in CASES.items():
        if arguments.only not in (None, name):
            continue
        job = build_job("image-classification", JobOptions(arguments.model, arguments.data, arguments.split))
        start = time.process_time()
        work = None if arguments.work is None else arguments.work / name.replace(" ", "-")
        options = {"confirm": None, **case, **(QUICK if arguments.quick else {})}
        if arguments.against:
            options["against"] = [name for name in options.get("against", CONTROLS) if name in arguments.against]
        _, results = tune_to_budget(job, out=work, **options)
        results.run["processor_seconds"] = round(time.process_time() - start, 1)
        record[name] = results.to_dict()
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        print(to_markdown(results))
        print(f"{name}: {'; '.join(results.run['notes'])}", file=sys.stderr)


if __name__ == "__main__":
    main()

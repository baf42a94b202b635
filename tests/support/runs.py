"""What is compared of evaluations that were interrupted and went on."""

from __future__ import annotations

import json

MEASURED = ("samples_per_second", "speedup", "speedup_low", "speedup_high", "peak_memory_mib")


def without_time(results):
    values = results.to_dict() if not isinstance(results, dict) else results
    rows = [{key: value for key, value in row.items() if key not in MEASURED} for row in values["rows"]]
    run = {key: value for key, value in values["run"].items() if key not in ("processes", "warnings")}
    return {"run": run, "data": values["data"], "rows": rows}


def lines(folder):
    return [
        json.loads(line) for file in sorted(folder.glob("samples*.jsonl")) for line in file.read_text().splitlines()
    ]


def results_in(folder):
    return [(record["variant"], record["sample"]) for record in lines(folder) if "ranked" in record]

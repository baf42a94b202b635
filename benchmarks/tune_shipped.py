"""The whole front that `tune` finds for each small model that ships with the package, beside constant ToMe.

Chosen without labels on some held-out scenes of digits, confirmed on others; the same GFLOPs at each budget. The
differences are in pairs over the same scenes, in points of each task's measure, with 95 % intervals. Nowhere on the
front the choice should be worse than the constant schedule.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from common import Row, run

from hf_tome.demo.digits_demo import DEMOS
from hf_tome.evaluation.reporting.tables import quality
from hf_tome.evaluation.search.budget.budget import Budget, tune_to_budget

MODELS = ("image", "clip", "siglip", "video", "scenes", "questions")
BUDGETS = (0.9, 0.7, 0.5, 0.3)


def measure_model(name: str, options: argparse.Namespace) -> list[Row]:
    """Return a row for each budget of a model's front."""
    choose, confirm, evaluations = (8, 8, 4) if options.quick else (options.choose, options.confirm, 45)
    demo = DEMOS[name]
    with TemporaryDirectory() as folder:
        job = demo.job(Path(folder), choose + confirm)
        _, results = tune_to_budget(
            job,
            Budget(0.5),
            use_labels=False,
            controls=(),
            also=BUDGETS,
            front=BUDGETS,
            choose=choose,
            confirm=confirm,
            max_evaluations=evaluations,
        )
    tuned, by_name = results.run["tuned"], {row["name"]: row for row in results.rows}
    measure = quality(results.rows[0]).key
    rows: list[Row] = []
    for budget in BUDGETS:
        names = [tuned["rows"].get(f"{kind}, {budget:g}") for kind in ("tuned", "constant ToMe")]
        if None in names:
            continue
        gains = tuned["gains"].get(f"constant ToMe, {budget:g}", {"points": [0.0, 0.0, 0.0]})
        row = {"model": demo.model, "scenes": results.data["num_samples"], "measure": measure, "budget": budget}
        row |= {key: by_name[name][measure] for key, name in zip(("tuned", "constant"), names)}
        row |= {"unmerged": results.rows[0][measure], "config": names[0]}
        for key, values in gains.items():
            row[key] = "{:+.1f} ({:+.1f} to {:+.1f})".format(*values)
        rows.append({**row, "better_at_most": gains["points"][2], "seconds": tuned["seconds"]})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def measure(options: argparse.Namespace) -> list[Row]:
    return [row for name in options.models for row in measure_model(name, options)]


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        {
            "model": "model",
            "scenes": "scenes",
            "budget": "of the GFLOPs",
            "measure": "measure",
            "unmerged": "unmerged",
            "tuned": "tuned",
            "constant": "constant ToMe",
            "points": "difference, points",
            "agreement": "agreement, points",
        },
        target="nowhere worse than constant ToMe: no interval below 0",
        reached=lambda row: row["better_at_most"] >= 0,
        add_options=lambda parser: (
            parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS),
            parser.add_argument("--choose", type=int, default=64),
            parser.add_argument("--confirm", type=int, default=200),
        ),
    )

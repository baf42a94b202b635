"""Draw the pictures of docs/ that follow from measurements: docs/images/*.png.

python scripts/make_plots.py [NAME ...]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plot_vlm import plot_vlm
from sections import read_sweep

from hf_tome.evaluation.reporting.plots import plot_pareto

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "benchmarks" / "measured"
IMAGES = ROOT / "docs" / "images"


def draw_sweep(path: Path) -> None:
    """Accuracy against GFLOPs and speed, of the sweep of DeiT-Tiny."""
    plot_pareto(read_sweep(), path)


def draw_growth(path: Path) -> None:
    """Speed-up and overhead against the number of tokens, and against the batch size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = json.loads((MEASURED / "growth.json").read_text(encoding="utf-8"))["rows"]
    panels = (
        ("tokens", "tokens, batch 1", [row for row in rows if row["batch_size"] == 1]),
        ("batch_size", "batch, 197 tokens", [row for row in rows if row["tokens"] == 197]),
    )
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (key, label, chosen) in zip(figure.subplots(1, len(panels)), panels):
        x = [row[key] for row in chosen]
        for name, colour, says in (
            ("speedup", "#0072b2", "ToMe"),
            ("oracle_speedup", "#888888", "slice oracle"),
        ):
            axis.errorbar(
                x, *_spread(chosen, name), color=colour, marker="o", capsize=3, label=f"{says}: times as fast"
            )
        overhead = axis.twinx()
        values, errors = _spread(chosen, "overhead")
        overhead.errorbar(
            x,
            [100 * value for value in values],
            [[100 * value for value in side] for side in errors],
            color="#d55e00",
            marker="s",
            linestyle=":",
            capsize=3,
            label="overhead of merging, % of the time",
        )
        overhead.set_ylim(-10, 30)
        overhead.set_ylabel("overhead, %")
        axis.set_xscale("log", base=2)
        axis.set_xticks(x, [str(value) for value in x])
        axis.set_xlabel(label)
        axis.set_ylabel("times as fast as unmerged")
        axis.grid(color="#dddddd", linewidth=0.6)
        handles = [handle for part in (axis, overhead) for handle in part.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=100)


def draw_vlm(path: Path) -> None:
    """Speed to the first token and memory of the cache of a LLaVA, against its image tokens."""
    plot_vlm(json.loads((MEASURED / "vlm.json").read_text(encoding="utf-8")), path)


def _spread(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[list[float]]]:
    """Return medians, and how far the quartiles are below and above them."""
    values = [row[key] for row in rows]
    medians = [value["median"] for value in values]
    below = [max(0.0, value["median"] - value["low"]) for value in values]
    above = [max(0.0, value["high"] - value["median"]) for value in values]
    return medians, [below, above]


PLOTS: dict[str, Callable[[Path], None]] = {"sweep-deit-tiny": draw_sweep, "growth": draw_growth, "vlm": draw_vlm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PLOTS, []], help="which; all of them if none is named")
    for name in parser.parse_args().names or PLOTS:
        IMAGES.mkdir(exist_ok=True)
        PLOTS[name](IMAGES / f"{name}.png")
        print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()

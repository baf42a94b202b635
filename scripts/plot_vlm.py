"""The plot of `benchmarks/vlm.py`; `python scripts/make_plots.py vlm` draws it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

KINDS = {
    "unmerged": ("unmerged", "#222222", "s", None),
    "r=": ("ToMe in the tower", "#0072b2", "o", (-34, 2)),
    "method=mame": ("MaMe in the tower", "#d55e00", "^", (-10, 8)),
    "projected": ("ToMe behind the projector", "#009e73", "D", (8, -3)),
}
"""By what a config's text holds, the last that fits: label, colour, marker, and where the names of points stand."""


def plot_vlm(result: Mapping[str, Any], path: Path) -> None:
    """Draw speed to the first token, and memory of the cache, against the image tokens that are left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    speed, cache = figure.subplots(1, 2)
    for key, (label, colour, marker, offset) in KINDS.items():
        rows = [row for row in result["rows"] if kind_of(row["config"]) == key]
        tokens = [row["image_tokens"] for row in rows]
        ratios = [row["first_token_speedup"] or {"median": 1, "low": 1, "high": 1} for row in rows]
        median = [ratio["median"] for ratio in ratios]
        spread = [[r["median"] - r["low"] for r in ratios], [r["high"] - r["median"] for r in ratios]]
        speed.errorbar(tokens, median, yerr=spread, fmt=marker, color=colour, label=label, fillstyle="none", capsize=3)
        cache.plot(tokens, [row["cache_mib"] for row in rows], marker, color=colour, label=label, fillstyle="none")
        for row, y in zip(rows, median):
            text = row["config"].replace("method=mame,threshold=", "").replace(",where=projected", "")
            if offset is None:
                continue  # the legend names it
            speed.annotate(text, (row["image_tokens"], y), offset, textcoords="offset points", fontsize=8)
    speed.set_ylabel("speed-up to the first token")
    cache.set_ylabel("cache, MiB")
    speed.margins(y=0.1)
    cache.set_ylim(bottom=0)
    for axis in (speed, cache):
        axis.set_xlabel("image tokens in the language model")
        axis.grid(alpha=0.3)
    speed.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def kind_of(config: str) -> str:
    """Return the last of `KINDS` that a config's text holds."""
    return [key for key in KINDS if key in config][-1]

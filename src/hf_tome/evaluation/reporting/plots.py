"""The Pareto plot: accuracy against compute and against speed, every config a labelled point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config.text import short_name
from ...files import replacing
from ...merging.methods import METHODS
from ..store.results import Results
from .tables import quality, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

PANELS = (
    ("gflops", "GFLOPs an image, multiply-adds (less is better)"),
    ("samples_per_second", "{unit}/s (more is better)"),
    ("cache_mib", "MiB of the cache (less is better)"),
)
COLOURS = {
    "unmerged": "#222222",
    "downsampled": "#888888",
}
"""What is no method; a method's colour is in its row."""
OTHER_COLOUR = "#009e73"
MARGIN = 0.15
_DIRECTIONS = 16
_DISTANCES = range(12, 100, 8)  # points from the marker to the middle of the label's nearest edge
_PADDING = 2  # pixels kept free around labels


def panels(results: Results) -> list[tuple[str, str]]:
    """Return what can be drawn against: the keys that any row has a value of, and the labels of their axes."""
    columns = []
    for key, label in PANELS:
        num_known = len(_rows_with(results.rows, key))
        some = "" if num_known == len(results.rows) else f", known of {num_known} of {len(results.rows)} configs"
        if num_known:
            columns.append((key, label.format(unit=unit(results)) + some))
    return columns


def plot_pareto(results: Results, path: Path) -> None:
    """Write what `draw_pareto` draws as PNG."""
    figure = draw_pareto(results)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=figure.dpi, format="png")


def draw_pareto(results: Results) -> Figure:
    """Draw the quality (see `tables.QUALITY`) against GFLOPs, against speed and against the cache, where known.

    Raises:
        ValueError: none is known of any config (see `panels`).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = panels(results)
    if not drawn:
        raise ValueError("There are neither GFLOPs nor speeds of any config to draw against.")
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, (key, label) in zip(axes, drawn):
        _scatter(axis, results.rows, key, label)
    data = results.data
    figure.suptitle(
        f"{results.run['model']} on {data['id']}, {data['num_samples']} {unit(results)} of split {data['split']}",
        parse_math=False,  # a name may hold a dollar sign
    )
    _legend(axes[0], results.rows)
    canvas.draw()  # the layout must be settled before labels are placed in pixels
    figure.set_layout_engine("none")
    for axis, (key, _) in zip(axes, drawn):
        _label_points(axis, _rows_with(results.rows, key), key)
    return figure


def _rows_with(rows: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get(key) is not None]


def _scatter(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str, label: str) -> None:
    for row in _rows_with(rows, key):
        axis.scatter(row[key], row[quality(row).key], s=45, color=_colour(row), zorder=3)
    axis.axhline(rows[0][quality(rows[0]).key], color=COLOURS["unmerged"], linewidth=0.8, linestyle=":", zorder=1)
    axis.margins(MARGIN)
    axis.set_xlabel(label)
    axis.set_ylabel(quality(rows[0]).one_line_header({}))
    axis.grid(color="#dddddd", linewidth=0.6, zorder=0)


def _legend(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    methods = {_method(row): _colour(row) for row in rows}
    handles = [Line2D([], [], color=colour, marker="o", linestyle="") for colour in methods.values()]
    axis.figure.legend(handles, list(methods), loc="outside lower center", ncols=len(methods), frameon=False)


def _label_points(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """Write each point's config beside it, at the nearest free spot, with a line to the point."""
    from matplotlib.transforms import Bbox

    points = axis.transData.transform([(row[key], row[quality(row).key]) for row in rows])
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    for row, point in zip(rows, points):
        style: dict[str, Any] = {
            "fontsize": 8,
            "ha": "center",
            "va": "center",
            "color": _colour(row),
            "parse_math": False,
        }
        label = axis.annotate(short_name(row["name"]), point, xycoords="figure pixels", **style)
        size = label.get_window_extent()
        box = _free_spot(point, size.width, size.height, taken, axis.get_window_extent())
        label.remove()
        taken.append(box)
        axis.annotate(
            short_name(row["name"]),
            point,
            ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2),
            xycoords="figure pixels",
            textcoords="figure pixels",
            **style,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
        )


def _free_spot(point: np.ndarray, width: float, height: float, taken: Sequence[Bbox], within: Bbox) -> Bbox:
    """Return the nearest box of that size around the point that touches nothing taken and stays inside."""
    from matplotlib.transforms import Bbox

    half = np.array([width / 2 + _PADDING, height / 2 + _PADDING])
    box = Bbox([point - half, point + half])
    for distance in _DISTANCES:
        for turn in range(_DIRECTIONS):
            angle = 2 * np.pi * (turn / _DIRECTIONS + 0.25)  # starts above the point
            direction = np.array([np.cos(angle), np.sin(angle)])
            centre = point + direction * (distance + half * np.abs(direction))
            box = Bbox([centre - half, centre + half])
            inside = within.x0 < box.x0 and box.x1 < within.x1 and within.y0 < box.y0 and box.y1 < within.y1
            if inside and not any(box.overlaps(other) for other in taken):
                return box
    return box


def _method(row: Mapping[str, Any]) -> str:
    return "unmerged" if row["name"] == "unmerged" else row.get("control", row["config"]["method"])


def _colour(row: Mapping[str, Any]) -> str:
    name = _method(row)
    return COLOURS[name] if name in COLOURS else METHODS[name].colour if name in METHODS else OTHER_COLOUR

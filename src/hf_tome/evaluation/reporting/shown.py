"""Results as a notebook shows them: a table, a data frame, a plot."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.results import Results
from .plots import draw_pareto, panels, plot_pareto
from .tables import columns, notes, run_notes, summary, to_markdown, to_table, words, write_report

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

PLOT = "pareto.png"


class MeasuredResults(Results):
    """The results of `hf_tome.evaluate`, `sweep` and `tune`.

    `rows` holds a dictionary for each config, the unmerged model first; printed, it is a table.
    """

    @classmethod
    def of(cls, results: Results) -> MeasuredResults:
        """Return results of the evaluation as ones that a notebook shows."""
        return cls(results.environment, results.run, results.data, results.rows)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame with a row for each config, indexed by its name; numbers are plain."""
        import pandas

        keys = [key for column in columns(self) for key in column.keys if key != "name"]
        control = ["control"] if any("control" in row for row in self.rows) else []
        frame = pandas.DataFrame([{key: row.get(key) for key in (*control, *keys)} for row in self.rows])
        frame.index = pandas.Index([row["name"] for row in self.rows], name="config")
        return frame

    def to_markdown(self) -> str:
        """Return the rows as a Markdown table."""
        return to_markdown(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw accuracy against GFLOPs and against speed, and write it to `path` as PNG if that is given.

        Raises:
            ValueError: neither GFLOPs nor speed is known of any config.
        """
        if path is not None:
            plot_pareto(self, Path(path))
        return draw_pareto(self)

    def save(self, folder: str | Path) -> None:
        """Write `results.json`, `report.md` and, where there is something to draw, `pareto.png` into a folder."""
        folder, drawn = Path(folder), bool(panels(self))
        write_report(self, folder, [(PLOT, "Accuracy against compute and against speed.")] if drawn else [])
        if drawn:
            plot_pareto(self, folder / PLOT)

    def __str__(self) -> str:
        return to_table(self)

    def _repr_html_(self) -> str:
        header = "".join(f"<th>{escape(column.one_line_header(words(self)))}</th>" for column in columns(self))
        rows = "".join(f"<tr>{self._cells(row)}</tr>" for row in self.rows)
        lines = "".join(f"<p>{escape(line)}</p>" for line in run_notes(self))
        table = f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
        return f"<p>{escape(summary(self))}</p>{table}{lines}<p><small>{escape(notes(self))}</small></p>"

    def _cells(self, row: dict[str, Any]) -> str:
        return "".join(
            f'<td style="text-align:{"left" if column.key in ("model", "name") else "right"}">'
            f"{escape(column.show(row))}</td>"
            for column in columns(self)
        )

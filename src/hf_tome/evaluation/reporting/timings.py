"""Benchmarks as tables: in words for a reader, in plain numbers for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from ...config import MergeConfig, format_config
from ...escaping import markdown_text
from ...merging.methods import get_method
from ...profiling.benchmark import Benchmark
from ...profiling.rounds import Spread
from .writers import markdown_table, plain_table

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass
class BenchmarkResults:
    """What merging gained with each config, beside the slice oracle, which is the limit of any merging."""

    benchmarks: Sequence[Benchmark]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A dictionary of plain JSON values for each config."""
        return [result.to_dict() for result in self.benchmarks]

    @property
    def warnings(self) -> list[str]:
        """Why there is no speed-up, or why one should not be trusted, a line each."""
        lines = [(result, line) for result in self.benchmarks for line in (result.why, *result.warnings) if line]
        return [f"{config_name(result)}: {line}" for result, line in lines]

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame with a row for each config, indexed by its name; numbers are plain."""
        import pandas

        return pandas.DataFrame([in_numbers(result) for result in self.benchmarks]).set_index("config")

    def to_markdown(self) -> str:
        """Return the rows as a Markdown table."""
        rows = [in_words(result) for result in self.benchmarks]
        cells = ([markdown_text("-" if value is None else value) for value in row.values()] for row in rows)
        return markdown_table(list(rows[0]), cells, num_left=1)

    def plot(self) -> Figure:
        """Draw each config's speed-up beside that of the slice oracle, with their quartiles."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 1.6 + 0.7 * len(self.benchmarks)), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        for place, result in enumerate(self.benchmarks):
            colour = get_method(result.config["method"]).colour
            _bar(axis, place - 0.2, result.speedup, colour)
            _bar(axis, place + 0.2, result.oracle_speedup, "#bbbbbb")
        axis.axvline(1, color="#222222", linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(self.benchmarks)), [config_name(result) for result in self.benchmarks])
        axis.invert_yaxis()
        axis.set_xlabel("speed-up over unmerged, median and quartiles (grey: the slice oracle)")
        return figure

    def __str__(self) -> str:
        rows = [in_words(result) for result in self.benchmarks]
        cells = (["-" if value is None else str(value) for value in row.values()] for row in rows)
        return "\n".join([plain_table(list(rows[0]), cells).rstrip("\n"), *self.warnings])

    def _repr_html_(self) -> str:
        rows = [in_words(result) for result in self.benchmarks]
        header = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
        cells = ["".join(f"<td>{escape(str(value))}</td>" for value in row.values()) for row in rows]
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.warnings)
        return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>{lines}"


def config_name(result: Benchmark) -> str:
    """Return the config as `--config` takes it."""
    return format_config(MergeConfig.from_dict(result.config))


def in_words(result: Benchmark) -> dict[str, Any]:
    """Return what a reader compares, each pair and each spread in one cell."""
    rate, memory = result.images_per_second, result.peak_memory_mib
    words = {
        "config": config_name(result),
        "tokens": f"{result.tokens[0]:.0f} to {result.tokens[1]:.0f}",
        "GFLOPs (MACs)": None if result.gflops is None else f"{result.gflops_unmerged:.3f} to {result.gflops:.3f}",
        "images/s": f"{rate['unmerged']:.1f} to {rate['merged']:.1f}",
        "speed-up": str(result.speedup),
        "oracle": str(result.oracle_speedup),
        "share": str(result.oracle_share),
    }
    if result.exact_speedup:
        words["exact last block"] = str(result.exact_speedup)
    return {**words, "MiB": f"{memory['unmerged']:.0f} to {memory['merged']:.0f}"} if memory else words


def in_numbers(result: Benchmark) -> dict[str, Any]:
    """Return the same as plain numbers, one a cell."""
    rate, memory = result.images_per_second, result.peak_memory_mib
    return {
        "config": config_name(result),
        "tokens_in": result.tokens[0],
        "tokens": result.tokens[1],
        "gflops_unmerged": result.gflops_unmerged,
        "gflops": result.gflops,
        "images_per_second_unmerged": rate["unmerged"],
        "images_per_second": rate["merged"],
        **_numbers("speedup", result.speedup),
        **_numbers("oracle_speedup", result.oracle_speedup),
        **_numbers("oracle_share", result.oracle_share),
        **(_numbers("exact_speedup", result.exact_speedup) if result.exact_speedup else {}),
        "peak_memory_mib_unmerged": memory.get("unmerged"),
        "peak_memory_mib": memory.get("merged"),
    }


def _numbers(name: str, spread: Spread) -> dict[str, float]:
    return {name: spread.median, f"{name}_low": spread.low, f"{name}_high": spread.high}


def _bar(axis: Any, place: float, spread: Spread, colour: str) -> None:
    errors = [[spread.median - spread.low], [spread.high - spread.median]]
    axis.barh(place, spread.median, 0.36, xerr=errors, color=colour, error_kw={"elinewidth": 1})

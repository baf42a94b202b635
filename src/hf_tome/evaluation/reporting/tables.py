"""The rows of an evaluation as a table on the terminal, JSON, CSV or Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.text import short_name
from ...escaping import markdown_text
from ...files import write_whole
from ..data.left_out import LeftOut
from ..store.results import Results
from ..tasks.registry import TASKS
from .writers import csv_lines, fit_columns, markdown_table, terminal_width

LONGEST_NAME = 32
"""The width from which the name of a config is folded in a table."""
GENERATION_SETTINGS = ("prompt", "choice_prompt", "max_new_tokens")
SKIPPED_SHOWN = 20
"""Skipped samples listed in a report; `results.json` lists all."""


@dataclass(frozen=True)
class Column:
    """One column: the key in a row, the header in lines for a narrow terminal, and the format of its values.

    `interval` are the keys of the value's lower and upper bound, where it has them.
    """

    key: str
    header: str
    form: str = ""
    interval: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that the column shows."""
        return (self.key, *self.interval)

    def one_line_header(self, words: Mapping[str, str]) -> str:
        """Return the header in one line."""
        return self.header.format(**words).replace("-\n", "-").replace("\n", " ").replace(" /", "/")

    def show(self, row: Mapping[str, Any]) -> str:
        """Return the row's value as text, a dash where it is unknown."""
        if row[self.key] is None:
            return "-"
        shown = ["-" if row.get(key) is None else format(row[key], self.form) for key in self.keys]
        return shown[0] if not self.interval else f"{shown[0]} ({' to '.join(shown[1:])})"

    def markdown(self, row: Mapping[str, Any]) -> str:
        """Return the row's value as a cell of a Markdown table, where names stay text."""
        return markdown_text(self.show(row)) if isinstance(row[self.key], str) else self.show(row)


COLUMNS = (
    Column("model", "model"),
    Column("name", "config"),
    Column("top1", "top-1\n%", ".2f"),
    Column("top5", "top-5\n%", ".2f"),
    Column("map", "mAP\n%", ".2f"),
    Column("accuracy", "right\n%", ".2f"),
    Column("vqa_accuracy", "VQA\n%", ".2f"),
    Column("answered", "chose\n%", ".2f"),
    Column("miou", "mIoU\n%", ".2f"),
    Column("pixel_accuracy", "pixels\nright %", ".2f"),
    Column("box_map", "box\nmAP %", ".2f"),
    Column("box_ap50", "box\nAP50 %", ".2f"),
    Column("delta1", "delta1\n%", ".2f"),
    Column("abs_rel", "abs-rel", ".4f"),
    Column("word_accuracy", "words\nright %", ".2f"),
    Column("wer", "WER\n%", ".2f"),
    *(Column(f"bleu{n}", f"BLEU-\n{n}", ".1f") for n in range(1, 5)),
    Column("rouge_l", "ROUGE-\nL", ".1f"),
    Column("cider", "CIDEr", ".1f"),
    Column("next_accuracy", "next token\nright %", ".2f"),
    Column("agreement", "agrees\n%", ".2f"),
    Column("kl", "KL", ".4f"),
    Column("perplexity", "perplexity", ".2f"),
    Column("needles", "needles\n%", ".1f"),
    Column("cache_mib", "cache\nMiB", ".2f"),
    Column("first_token_ms", "first\ntoken ms", ".0f"),
    Column("written_per_second", "then\ntokens/s", ".1f"),
    Column("drop", "drop, 95 %\ninterval", ".2f", ("drop_low", "drop_high")),
    Column("tokens", "{tokens}", ".1f"),
    Column("gflops", "GFLOPs\n(MACs)", ".3f"),
    Column("samples_per_second", "{unit}\n/s", ".1f"),
    Column("speedup", "speed-up,\nquartiles", ".2f", ("speedup_low", "speedup_high")),
    Column("peak_memory_mib", "peak\nMiB", ".0f"),
    Column("new_tokens", "new\ntokens", ".1f"),
)

QUALITY = {
    "map": "mean average precision",
    "top1": "top-1 accuracy",
    "accuracy": "accuracy",
    "cider": "CIDEr-D",
    "miou": "mean intersection over union",
    "box_map": "mean average precision of boxes",
    "delta1": "delta1",
    "word_accuracy": "word accuracy",
    "next_accuracy": "next-token accuracy",
    "agreement": "agreement with the unmerged model",
}
"""The columns that say how good a model is, and their names; the first that results have is drawn against the cost."""

WORDS = {"unit": "images", "tokens": "tokens\nat end", "same": "that get the same class as from"}
"""What headers and notes call things, where a task has no words of its own (see `tasks.task.Task`)."""

SEVERAL = "several"
"""The task's name in results of several models that were joined; their samples are of several kinds."""

COLUMN_NOTES = {
    "accuracy": "right: share of the answers that are one of the right ones, as VQA compares them, or the right "
    "option.",
    "vqa_accuracy": "VQA: its own measure, by which an answer counts in full if three of ten people gave it.",
    "answered": "chose: share of the multiple-choice {unit} whose answer names an option.",
    "cider": "BLEU, ROUGE-L and CIDEr-D times 100, as in COCO's evaluation.",
    "miou": "mIoU: intersection over union of the pixels of each class in all {unit}, the mean over the classes.",
    "box_map": "box mAP: COCO's, over IoU of 0.50 to 0.95; AP50 at 0.50.",
    "delta1": "delta1: share of the pixels whose depth is off by less than a factor of 1.25; abs-rel: mean absolute "
    "relative error.",
    "word_accuracy": "words right: 100 less the word error rate (WER), without case and punctuation.",
    "agreement": "agrees: share of the {unit} {same} the unmerged model.",
    "next_accuracy": "next token right: share of the tokens that follow a context which are the likeliest.",
    "kl": "KL: from the next-token distributions of the full cache, the mean over the tokens that follow.",
    "needles": "needles: share of the tokens of numbers hidden in a context that are the likeliest where it is asked "
    "for them, each given the ones before.",
    "cache_mib": "cache: what is stored of a context, in all layers.",
    "first_token_ms": "first token: until the context of a batch is read and its first token known; then: tokens a "
    "second that follow, of all {unit} of a batch together, in seconds of {clock}.",
    "drop": "drop: points of {quality} lost, with the 95 % interval of a bootstrap over the same {unit}.",
    "tokens": "tokens at end: after the last block, the mean over the {unit}.",
    "gflops": "GFLOPs: multiply-adds (MACs), half of what most counters call FLOPs, of the vision or audio tower "
    "for one image or view, padding included.",
    "samples_per_second": "{unit}/s: the model's forward alone, after a warm-up, in seconds of {clock}.",
    "speedup": "speed-up: over unmerged, the median and the quartiles of paired rounds.",
    "peak_memory_mib": "peak MiB: the weights and what torch allocates at most during the forward of one batch.",
}
"""What the columns mean, in the order of a report."""

TEXT_NOTES = {
    "tokens": "image tokens: those that the language model reads of an image, the mean over the {unit}.",
    "samples_per_second": "{unit}/s: the whole generation, the vision tower included, in seconds of {clock}.",
    "new_tokens": "new tokens: generated, the mean over the {unit}; a model that says less is faster for that.",
}
"""The same for tasks in which text is generated."""


CLOCK_WORDS = {"process": "processor time, all threads together", "wall": "wall time", None: "wall time"}
"""The clock of a run in words; results of version 0.1.0 do not name it."""


def columns(results: Results) -> list[Column]:
    """Return the columns that the results have."""
    return [column for column in COLUMNS if column.key in results.rows[0]]


def quality(row: Mapping[str, Any]) -> Column:
    """Return the column that says how good the model of a row is."""
    key = next(key for key in QUALITY if key in row)
    return next(column for column in COLUMNS if column.key == key)


def words(results: Results) -> dict[str, str]:
    """Return what headers and notes call things."""
    name = results.run["task"]
    if name == SEVERAL:
        return {**WORDS, "unit": "samples"}
    return {**WORDS, **(TASKS[name].words if name in TASKS else {})}


def unit(results: Results) -> str:
    """Return what the samples are called."""
    return words(results)["unit"]


def notes(results: Results) -> str:
    """Return what the columns of the results mean, in a paragraph."""
    row = results.rows[0]
    task = TASKS.get(results.run["task"])
    texts = {**COLUMN_NOTES, **(TEXT_NOTES if "new_tokens" in row else {}), **(task.notes if task else {})}
    called = {**words(results), "quality": QUALITY[quality(row).key], "clock": CLOCK_WORDS[results.run.get("clock")]}
    return " ".join(text.format(**called) for key, text in texts.items() if key in row)


def measured_on(results: Results) -> str | None:
    """Return the day of the measurement (UTC), `None` where the results are of a version that did not note it."""
    date = results.environment.get("date")
    return None if date is None else date[:10]


def join(several: Mapping[str, Results]) -> Results:
    """Return the results of several models as one, whose rows name their model; for CSV and Markdown.

    A row has all columns that any of them has, `None` where its own results have no such column.
    """
    first = next(iter(several.values()))
    keys = dict.fromkeys(key for results in several.values() for row in results.rows for key in row)
    rows = [{"model": name, **dict.fromkeys(keys), **row} for name, results in several.items() for row in results.rows]
    return Results(first.environment, {**first.run, "task": SEVERAL, "model": ", ".join(several)}, first.data, rows)


def to_json(results: Results) -> str:
    """Return everything as one JSON object."""
    return json.dumps(results.to_dict(), indent=2, allow_nan=False) + "\n"


def to_csv(results: Results) -> str:
    """Return the rows as CSV, with full precision; the config as the text that `--config` takes."""
    keys = [key for column in columns(results) for key in column.keys]
    header = ["config" if key == "name" else key for key in keys]
    return csv_lines(header, ([row[key] for key in keys] for row in results.rows))


def to_markdown(results: Results) -> str:
    """Return the rows as a Markdown table."""
    header = [column.one_line_header(words(results)) for column in columns(results)]
    rows = ([column.markdown(row) for column in columns(results)] for row in results.rows)
    return markdown_table(header, rows, num_left=sum(column.key in ("model", "name") for column in columns(results)))


def to_table(results: Results) -> str:
    """Return the rows for the terminal, in colour where the output is one: as several tables where one is too wide."""
    from rich.console import Console

    console = Console(width=terminal_width())
    with console.capture() as capture:
        parts = [summary(results), *_terminal_tables(results, console.width), *run_notes(results)]
        console.print(*parts, sep="\n", highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _terminal_tables(results: Results, width: int) -> Iterator[Any]:
    """Yield tables of rich that fit a width; what names a row stands in each of them."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = columns(results)
    headers = [column.header.format(**words(results)) for column in shown]
    cells = [
        [short_name(row["name"]) if column.key == "name" else column.show(row) for column in shown]
        for row in results.rows
    ]
    texts = zip(headers, *cells)
    widths = [max(len(line) for text in column for line in text.split("\n")) for column in texts]
    widths[0] = min(widths[0], LONGEST_NAME)
    for table in fit_columns(widths, width, gap=2):
        part = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for index in table:
            justify = "left" if shown[index].key == "name" else "right"
            part.add_column(headers[index], justify=justify, overflow="fold", width=widths[index])  # type: ignore[arg-type]
        for row in cells:
            part.add_row(*(Text(row[index]) for index in table))  # as they are: brackets in a name are no markup
        yield part


FORMATS: dict[str, Callable[[Results], str]] = {
    "table": to_table,
    "json": to_json,
    "csv": to_csv,
    "md": to_markdown,
}


def write_report(results: Results, folder: Path, pictures: Sequence[tuple[str, str]] = ()) -> None:
    """Write `results.json` and `report.md` into a folder; `pictures` are (file name, caption), shown in the report."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "results.json", to_json(results))
    write_whole(folder / "report.md", _report(results, pictures))


def _report(results: Results, pictures: Sequence[tuple[str, str]]) -> str:
    run = results.run
    settings = {name: run[name] for name in GENERATION_SETTINGS if name in run}
    lines = [
        "# Token merging: accuracy and speed",
        "",
        f"{markdown_text(summary(results))}.",
        "",
        to_markdown(results),
        notes(results),
        "",
        *(f"![{markdown_text(caption)}]({name})\n\n{markdown_text(caption)}\n" for name, caption in pictures),
        "## How it was measured",
        "",
        f"- task {run['task']}, dtype {run['dtype']}, attention {run['attention']}, batches of {run['batch_size']}",
        *machine_lines(results),
        *(f"- {name.replace('_', ' ')}: {markdown_text(repr(value))}" for name, value in settings.items()),
        *(f"- {markdown_text(note)}" for note in run_notes(results)),
        *_skipped_lines(results.data["skipped"]),
        *_left_out_lines(results.data),
    ]
    return "\n".join(lines) + "\n"


def machine_lines(results: Results) -> list[str]:
    """Return Markdown items that say on what, with which packages and when the results were measured."""
    environment = results.environment
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    device = f"{environment['device_name']} ({environment['device']}), {environment['threads']} threads"
    system = f"{environment['platform']}, Python {environment['python']}"
    lines = [f"- {markdown_text(f'{device}, {system}')}", f"- {markdown_text(packages)}"]
    return lines + ([f"- measured on {day}"] if (day := measured_on(results)) else [])


def run_notes(results: Results) -> list[str]:
    """Return the notes of a run and the warnings about its speeds, a line each."""
    warnings = (f"warning: {text}" for text in results.run.get("warnings", ()))
    return [*results.run.get("notes", ()), *warnings]


def summary(results: Results) -> str:
    """Return what was evaluated, in a line."""
    data = results.data
    skipped = f", {len(data['skipped'])} skipped" if data["skipped"] else ""
    left_out = f", {_left_out(data)}" if "left_out" in data else ""
    description = f"{data['num_samples']} {unit(results)} of {data['id']}, split {data['split']}{skipped}{left_out}"
    return f"{results.run['model']} on {description}"


def _left_out(data: Mapping[str, Any]) -> LeftOut:
    return LeftOut.from_dict(data["left_out"])


def _left_out_lines(data: Mapping[str, Any]) -> list[str]:
    if "left_out" not in data:
        return []
    left_out = _left_out(data)
    return ["", "## Files left out", "", f"{left_out}; among them:", "", *(f"- {file}" for file in left_out.files)]


def _skipped_lines(skipped: Sequence[Mapping[str, str]]) -> list[str]:
    if not skipped:
        return ["- no sample was skipped"]
    lines = ["", f"## Skipped samples ({len(skipped)})", ""]
    for sample in skipped[:SKIPPED_SHOWN]:
        lines.append(f"- {markdown_text(sample['sample'])}: {markdown_text(sample['reason'])}")
    if len(skipped) > SKIPPED_SHOWN:
        lines.append(f"- and {len(skipped) - SKIPPED_SHOWN} more, in results.json")
    return lines

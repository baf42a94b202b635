"""Run the presses of kvpress on the documents of `kv_cache_kvpress.py`, without this library.

python benchmarks/kvpress_runner.py JOB.json ROWS.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from kvpress import (
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    MergingPress,
    SnapKVPress,
    StreamingLLMPress,
)
from transformers import AutoModelForCausalLM, DynamicCache

PRESSES = {
    "kvpress: ExpectedAttentionPress": ExpectedAttentionPress,
    "kvpress: SnapKVPress": SnapKVPress,
    "kvpress: KeyDiffPress": KeyDiffPress,
    "kvpress: KnormPress": KnormPress,
    "kvpress: StreamingLLMPress": StreamingLLMPress,
    "kvpress: MergingPress(ExpectedAttentionPress)": lambda compression_ratio: MergingPress(
        press=ExpectedAttentionPress(compression_ratio=compression_ratio)
    ),
}


def continued(model: Any, cache: DynamicCache, begin: int, ids: list[int]) -> torch.Tensor:
    """Return the logits (n, V) behind a cache whose tokens end before position `begin`; the cache stays as it was."""
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    positions = torch.arange(begin, begin + len(ids))[None]
    logits = model(torch.tensor([ids]), past_key_values=cache, position_ids=positions, use_cache=True).logits[0]
    for layer, length in zip(cache.layers, lengths):
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
    return logits.float()


def read_document(model: Any, document: dict[str, Any], press: Any) -> tuple[torch.Tensor, list[float]]:
    """Return the log-probabilities (n, V) of the tokens that follow, and the shares of right digits."""
    read, last = document["context"][:-1], document["context"][-1]
    cache = DynamicCache()
    if press is None:
        model.model(torch.tensor([read]), past_key_values=cache, use_cache=True)
    else:
        with press(model):
            model.model(torch.tensor([read]), past_key_values=cache, use_cache=True)
    logits = continued(model, cache, len(read), [last, *document["following"]])[:-1]
    shares = []
    for question in document["questions"]:
        ids = question["ids"]
        likeliest = continued(model, cache, len(read), [last, *ids[:-1]]).argmax(dim=-1)
        right = (likeliest == torch.tensor(ids))[-question["num_answer"] :]
        shares.append(float(right.float().mean()))
    return logits.log_softmax(dim=-1), shares


@torch.inference_mode()
def main(job: Path, rows: Path) -> None:
    """Append a line of rows for each document that `rows` does not have yet."""
    torch.set_num_threads(1)
    settings = json.loads(job.read_text())
    file = Path(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    done = len(rows.read_text().splitlines()) if rows.is_file() else 0
    for document in settings["documents"][done:]:
        target = torch.tensor(document["following"])[:, None]
        ways = [("full cache", 1.0, None)]
        ways += [
            (name, ratio, press(compression_ratio=1 - ratio))
            for ratio in settings["ratios"]
            for name, press in PRESSES.items()
        ]
        full, measured = None, []
        for name, ratio, press in ways:
            logits, shares = read_document(model, document, press)
            full = logits if full is None else full
            measured.append(
                {
                    "way": name,
                    "keep_ratio": ratio,
                    "kl": float((full.exp() * (full - logits)).sum(dim=-1).mean()),
                    "agreement": float((full.argmax(dim=-1) == logits.argmax(dim=-1)).float().mean()),
                    "nll": float(-logits.gather(1, target).mean()),
                    "digits": sum(shares) / len(shares),
                    "whole": sum(share == 1 for share in shares),
                }
            )
        with rows.open("a") as out:
            out.write(json.dumps(measured) + "\n")
        print(f"{done + 1} documents with kvpress", file=sys.stderr, flush=True)
        done += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

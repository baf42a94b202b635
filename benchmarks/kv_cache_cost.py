"""What merging a key-value cache costs, and what a merged cache is worth while text is written.

Random weights in the shape of SmolLM2-135M (9 query and 3 KV heads of 64). Merging: one layer reads a prompt with and
without merging its cache by half. Decoding: one token for each of 8 rows, in six layers without a head, behind entries
that are full, merged to a quarter with sizes, or plainly that few. Medians of rounds, by processor time, one thread.

    python benchmarks/kv_cache_cost.py [--quick] [--out benchmarks/measured/kv_cache_cost.json]
"""

from __future__ import annotations

import copy

import torch
from common import Row, run
from transformers import DynamicCache, LlamaConfig, LlamaModel

from hf_tome import MergeConfig, apply, remove
from hf_tome.adapters.cache_names import cache_keyword
from hf_tome.adapters.kv_cache.layers.layer import MergingLayer
from hf_tome.api import plan_targets
from hf_tome.profiling.rounds import interleave

COLUMNS = {"case": "case", "entries": "entries", "seconds": "seconds", "share": "share"}
WAYS = {"log(size)": {}, "fitted sizes": {"size": "fitted"}, "MaMe, causal": {"method": "mame", "causal": True}}


def decoder(num_layers: int) -> LlamaModel:
    """Return a decoder of random weights without a head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=num_layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
    )
    return LlamaModel(config).eval()


def merging(num_tokens: int, rounds: int) -> list[Row]:
    """Return what merging takes of one layer's prefill."""
    model, ids = decoder(1), torch.randint(128, (1, num_tokens))

    def read(fields: dict | None) -> None:
        if fields is not None:
            apply(model, MergeConfig(where="cache", keep_ratio=0.5, **fields))
        model(ids, use_cache=True)
        remove(model)

    timed = interleave(
        {"plain": lambda: read(None), **{way: lambda way=way: read(WAYS[way]) for way in WAYS}}, rounds=rounds
    )
    plain = median(timed["plain"])
    rows = [{"case": "one layer reads a prompt", "entries": num_tokens, "seconds": plain, "share": None}]
    for way in WAYS:
        seconds = median(timed[way]) - plain
        rows.append(
            {"case": f"merging, {way}", "entries": num_tokens // 2, "seconds": seconds, "share": seconds / plain}
        )
    return rows


def decoding(num_tokens: int, batch_size: int, rounds: int) -> list[Row]:
    """Return the seconds of one decoded token behind full, merged and plainly shorter caches."""
    model = decoder(6)
    name = cache_keyword(model)
    token, few = torch.zeros(batch_size, 1, dtype=torch.int64), num_tokens // 4
    config = MergeConfig(where="cache", keep_ratio=0.25)
    rules = [change.detail.rule for change in plan_targets(model, config)[0].patches]
    states = torch.randn(2, batch_size, 3, num_tokens, 64)
    caches = {}
    for way, length in (("full", num_tokens), ("merged", few), ("plainly shorter", few)):
        caches[way] = DynamicCache(config=model.config)
        for index, layer in enumerate(caches[way].layers):
            layer.update(*states[:, :, :, :length])
            if way == "merged":
                held = MergingLayer.holding(layer, rules[index])
                held.sizes, held.has_merged, held._is_new, held.seen = held.sizes * 4, True, False, num_tokens
                held.padding = held.lost = torch.zeros(batch_size, dtype=torch.int64)
                held.settled = few
                caches[way].layers[index] = held

    merging_model = apply(copy.deepcopy(model), config)

    def step(way: str) -> None:
        (merging_model if way == "merged" else model)(token, use_cache=True, **{name: caches[way]})
        caches[way].crop(-1)

    timed = interleave({way: lambda way=way: step(way) for way in caches}, rounds=rounds)
    full = median(timed["full"])
    return [
        {
            "case": f"decoding, batch of {batch_size}, {way}",
            "entries": num_tokens if way == "full" else few,
            "seconds": median(timed[way]),
            "share": median(timed[way]) / full,
        }
        for way in caches
    ]


def median(seconds: object) -> float:
    """Return the median of rounds."""
    return float(torch.tensor(list(seconds)).median())  # type: ignore[call-overload]


@torch.inference_mode()
def measure(quick: bool) -> list[Row]:
    """Return all rows."""
    num_tokens, rounds = (512, 2) if quick else (4096, 7)
    return [*merging(num_tokens, rounds), *decoding(num_tokens, 8, rounds)]


def reached(row: Row) -> bool | None:
    """Return whether merging with counts takes at most 6 % of the layer's prefill."""
    return row["share"] <= 0.06 if row["case"] == "merging, log(size)" else None


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="merging a layer's entries at most 6 % of its prefill; decoding behind merged entries at least 90 % as "
        "fast as behind plainly so few",
        reached=reached,
    )

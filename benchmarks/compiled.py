"""Compiled models: `torch.compile(fullgraph=True, dynamic batch)` of merged models against the compiled oracle.

ViT-B at 224 px, batch 4, float32, sdpa, one thread; ToMe with r=16, and MaMe with keep_ratio=0.5 in blocks 3, 6 and 9
(the paper's setting for training from scratch). Graphs: how often the merged model was compiled for batches of 4, 2
and 3.

    python benchmarks/compiled.py [--quick] [--out benchmarks/measured/compiled.json]
"""

from __future__ import annotations

from functools import partial

import torch
from common import Row, run, speeds
from transformers import ViTConfig, ViTForImageClassification

from hf_tome import MergeConfig, apply
from hf_tome.profiling.benchmark import benchmark
from hf_tome.profiling.example_inputs import example_inputs
from hf_tome.profiling.slice_oracle import shallow_copy

CONFIGS = {
    "ToMe r=16": MergeConfig(r=16),
    "MaMe keep_ratio=0.5": MergeConfig(method="mame", keep_ratio=0.5, layers=[3, 6, 9]),
}
COLUMNS = {
    "method": "method",
    "graphs": "graphs for 3 batch sizes",
    "unmerged_s": "unmerged s",
    "speedup": "speed-up",
    "oracle_speedup": "oracle",
    "oracle_share": "share of the oracle",
}


def count_graphs(model: ViTForImageClassification, config: MergeConfig) -> int:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(apply(shallow_copy(model), config), backend=count, fullgraph=True)
    with torch.inference_mode():
        for batch_size in (4, 2, 3):
            compiled(**example_inputs(model, batch_size))
    return len(graphs)


def measure(quick: bool) -> list[Row]:
    torch.manual_seed(0)
    size = {"num_hidden_layers": 4, "hidden_size": 192, "num_attention_heads": 3} if quick else {}
    model = ViTForImageClassification(ViTConfig(**size)).eval()
    configs = {"ToMe r=16": CONFIGS["ToMe r=16"]} if quick else CONFIGS
    rows = []
    for name, config in configs.items():
        graphs = count_graphs(model, config)
        torch._dynamo.reset()
        result = benchmark(
            model,
            example_inputs(model, 4),
            config,
            rounds=3 if quick else 11,
            clock="process",
            memory=False,
            wrap=partial(torch.compile, fullgraph=True, dynamic=True),
        )
        rows.append(
            {
                "method": name,
                "graphs": graphs,
                **speeds(result),
            }
        )
    return rows


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        COLUMNS,
        target="no graph break, no compilation after the second shape, at least 97 % of the compiled oracle",
        reached=lambda row: row["graphs"] <= 2 and row["oracle_share"].median >= 0.97,
    )

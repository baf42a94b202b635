"""What composes with what, each cell with the tests that show it: docs/deploy.md has the table.

A cell without a test is not there, and the table says "not tested". `tests/project/test_what_composes.py` checks that
every test exists, that it names the configuration that the row is about, and that a refusal asserts an error.
"""

from __future__ import annotations

from dataclasses import dataclass

WORKS = "works"
REFUSED = "refused"

FEATURES = {
    "fullgraph": "torch.compile, fullgraph",
    "export": "torch.export",
    "onnx": "ONNX",
    "batch": "any batch size in one graph",
    "int8": "int8 weights (torchao, bitsandbytes)",
    "half": "bfloat16, float16",
    "lora": "LoRA (peft)",
    "parallel": "DDP, FSDP",
    "checkpointing": "activation checkpointing",
    "hooks": "hooks, offload (accelerate)",
}
"""The columns of the table, by the name that a cell uses."""

DESIGNS = {
    "tome": "ViT, ToMe",
    "mame": "ViT, MaMe by threshold",
    "union": 'ViT, MaMe with `batching="union"`',
    "keep_ratio": "ViT, MaMe with `keep_ratio`",
    "restore": "ViT, `restore=True`",
    "timm": "timm ViT, ToMe",
    "llava": 'LLaVA, `where="tower"`',
    "projected": '`where="projected"`',
    "dense": "dense models (DINOv2, DINOv3, BEiT)",
    "packed": "packed towers (Qwen-VL)",
    "sam": "SAM",
    "denoiser": "denoisers of diffusers",
    "cache": '`where="cache"`',
}
"""The rows of the table, by the name that a cell uses."""


@dataclass(frozen=True)
class Cell:
    """What happens where a design meets a feature.

    Attributes:
        design, feature: the row and the column.
        tests: the tests that show it, `path::name` below tests/.
        configured: a piece of the first test's file that names the model or configuration that the row is about.
        result: `WORKS`, or `REFUSED` with an error that the tests assert.
        note: what limits it, in a few words.
    """

    design: str
    feature: str
    tests: tuple[str, ...]
    configured: str
    result: str = WORKS
    note: str = ""


_ADAPTED = "adapters/encoders/test_adapted.py::"
_INVARIANTS = "adapters/encoders/test_invariants.py::"
_COMPILE = "adapters/encoders/test_compile.py::"
_EXPORT = "hub/test_export.py::"
_APPLY = "adapters/encoders/test_apply.py::"
_HALF = "adapters/encoders/test_attention.py::test_half_precision"
_LORA = (f"{_ADAPTED}test_lora_on_queries_keys_and_values",)
_INT8 = (f"{_ADAPTED}test_int8_weights", f"{_ADAPTED}test_bitsandbytes")
_PARALLEL = ("training/test_parallel.py::test_two_processes_train_as_one",)
_CHECKPOINTED = "test_checkpointed_gradients_equal_plain_ones"
_VLM = "adapters/vision_language/test_vlm.py::"
_DIFFUSION = "adapters/diffusion/test_composition.py::"
_NO_GRAPH = (
    "adapters/encoders/test_graphs.py::test_numbers_that_depend_on_the_images_are_no_graph",
    f"{_EXPORT}test_what_cannot_be_exported_is_refused",
)
_DEPENDS = "the number of tokens depends on the images; set `keep_ratio`"
_BREAKS = "without `fullgraph`"
_THRESHOLD = 'method="mame", threshold='
_KEEP_RATIO = 'method="mame", keep_ratio=0.6'

CELLS = (
    Cell("tome", "fullgraph", (f"{_INVARIANTS}test_compiles_without_a_graph_break",), '"tome": MergeConfig(r=6)'),
    Cell("tome", "export", (f"{_EXPORT}test_exported_program",), '"tome": MergeConfig(r=6)'),
    Cell("tome", "onnx", (f"{_EXPORT}test_onnx",), '"tome": MergeConfig(r=6)'),
    Cell("tome", "batch", (f"{_COMPILE}test_batches_of_every_size_share_a_graph",), '"tome": MergeConfig(r=6)'),
    Cell("tome", "int8", _INT8, '"tome": MergeConfig(r=6)'),
    Cell("tome", "half", (_HALF,), "MergeConfig(r=6, trace=True)"),
    Cell("tome", "lora", _LORA, '"tome": MergeConfig(r=6)'),
    Cell("tome", "parallel", _PARALLEL, '"tome": MergeConfig(r=4)'),
    Cell("tome", "checkpointing", (f"{_INVARIANTS}{_CHECKPOINTED}",), '"tome": MergeConfig(r=6)'),
    Cell("tome", "hooks", (f"{_APPLY}test_accelerates_hooks",), "MergeConfig(r=6)"),
    Cell("mame", "fullgraph", (f"{_COMPILE}test_graphs_that_break",), _THRESHOLD, note=_BREAKS),
    Cell("mame", "export", _NO_GRAPH[:1], _THRESHOLD, REFUSED, _DEPENDS),
    Cell("mame", "onnx", _NO_GRAPH[1:], _THRESHOLD, REFUSED, _DEPENDS),
    Cell("mame", "int8", _INT8, _THRESHOLD),
    Cell("mame", "half", (_HALF,), _THRESHOLD),
    Cell("mame", "lora", _LORA, _THRESHOLD),
    Cell("mame", "parallel", _PARALLEL, _THRESHOLD),
    Cell("mame", "checkpointing", (f"{_INVARIANTS}{_CHECKPOINTED}",), _THRESHOLD),
    Cell("union", "export", _NO_GRAPH[1:], '"union"', REFUSED, _DEPENDS),
    Cell("union", "onnx", _NO_GRAPH[1:], '"union"', REFUSED, _DEPENDS),
    Cell("union", "int8", _INT8, 'batching="union"'),
    Cell("union", "lora", _LORA, 'batching="union"'),
    Cell("keep_ratio", "fullgraph", (f"{_INVARIANTS}test_compiles_without_a_graph_break",), _KEEP_RATIO),
    Cell("keep_ratio", "export", (f"{_EXPORT}test_exported_program",), _KEEP_RATIO),
    Cell("keep_ratio", "onnx", (f"{_EXPORT}test_onnx",), _KEEP_RATIO),
    Cell("keep_ratio", "batch", (f"{_COMPILE}test_batches_of_every_size_share_a_graph",), _KEEP_RATIO),
    Cell("keep_ratio", "int8", _INT8, _KEEP_RATIO),
    Cell("keep_ratio", "lora", _LORA, _KEEP_RATIO),
    Cell("keep_ratio", "checkpointing", (f"{_INVARIANTS}{_CHECKPOINTED}",), _KEEP_RATIO),
    Cell(
        "restore",
        "checkpointing",
        ("adapters/encoders/test_gradients.py::test_a_model_that_gives_the_grid_back_has_exact_gradients",),
        "restore=True",
    ),
    Cell("restore", "hooks", (f"{_APPLY}test_a_model_over_several_devices",), '"restore": True'),
    Cell("timm", "fullgraph", ("integrations/test_recipes_timm.py::test_compiles",), "MergeConfig(r=6)"),
    Cell("timm", "checkpointing", (f"integrations/test_recipes_timm.py::{_CHECKPOINTED}",), "MergeConfig(r=6)"),
    Cell("llava", "fullgraph", (f"{_VLM}test_compiled_decoding",), '"static"', note="decoding, static cache"),
    Cell("llava", "lora", (f"{_VLM}test_lora",), "Llava"),
    Cell("llava", "checkpointing", (f"{_VLM}test_gradients_with_and_without_checkpointing",), "Llava"),
    Cell("llava", "hooks", (f"{_VLM}test_hooks_of_accelerate",), "Llava"),
    Cell("projected", "half", ("adapters/vision_language/test_vlm_projected.py::test_half_precision",), '"projected"'),
    Cell("dense", "fullgraph", ("adapters/dense/test_dense.py::test_compiles_without_a_graph_break",), '"dinov3"'),
    Cell("dense", "checkpointing", (f"adapters/dense/test_dense.py::{_CHECKPOINTED}",), '"dinov2", "beit", "dinov3"'),
    Cell("packed", "fullgraph", ("adapters/dense/test_packed.py::test_compiles",), '"qwen3_vl"', note=_BREAKS),
    Cell("packed", "checkpointing", (f"adapters/dense/test_packed.py::{_CHECKPOINTED}",), '"qwen3_vl"'),
    Cell("sam", "fullgraph", ("adapters/dense/test_sam.py::test_compiles",), '"sam"', note=_BREAKS),
    Cell("sam", "checkpointing", (f"adapters/dense/test_sam.py::{_CHECKPOINTED}",), '"sam"'),
    Cell(
        "denoiser",
        "fullgraph",
        (f"{_DIFFUSION}test_repeated_blocks_compile_as_one_graph",),
        '"FluxTransformer2DModel"',
        note="repeated blocks",
    ),
    Cell("denoiser", "half", (f"{_DIFFUSION}test_half_precision",), '"FluxTransformer2DModel"'),
    Cell("denoiser", "lora", (f"{_DIFFUSION}test_lora",), '"UNet2DConditionModel"'),
    Cell(
        "denoiser",
        "hooks",
        (f"{_DIFFUSION}test_hooks_set_before_and_after", f"{_DIFFUSION}test_model_offload"),
        '"UNet2DConditionModel"',
    ),
    Cell("cache", "half", ("adapters/kv_cache/test_cache_generate.py::test_bfloat16",), "HALF", note="bfloat16"),
    Cell(
        "cache",
        "hooks",
        ("adapters/kv_cache/test_cache_generate.py::test_offloading_carries_everything",),
        "HALF",
        note="offloaded cache layers",
    ),
)


def table() -> str:
    """Return the table in Markdown, with the reasons of refusals and the tests below it."""
    cells = {(cell.design, cell.feature): cell for cell in CELLS}
    lines = [f"| | {' | '.join(FEATURES.values())} |", f"|---|{'---|' * len(FEATURES)}"]
    for design, label in DESIGNS.items():
        lines.append(f"| {label} | {' | '.join(_text(cells.get((design, feature))) for feature in FEATURES)} |")
    refused = {cell.note: None for cell in CELLS if cell.result == REFUSED}
    lines += ["", *(f"Refused: {reason}." for reason in refused)]
    lines += ["", "The tests, below `tests/`:", ""]
    for design, label in DESIGNS.items():
        tests = {test: None for cell in CELLS if cell.design == design for test in cell.tests}
        lines.append(f"- {label}: {', '.join(f'`{test}`' for test in tests)}")
    return "\n".join(lines) + "\n"


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "not tested"
    if cell.result == REFUSED:
        return "refused"
    return f"works ({cell.note})" if cell.note else "works"

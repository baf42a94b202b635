"""Export a merged model: to `torch.export` and to ONNX, with a batch of any size.

A merged model is exported as it is: sizes, matching and merging become part of the graph. The number of tokens must
follow from the config alone, so MaMe needs `keep_ratio`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..api import targets
from ..inspection.reports import depends_on_images
from ..patching.unwrap import unwrap
from ..profiling.example_inputs import example_inputs

ExportInputs = Mapping[str, Tensor] | Tensor | Sequence[Tensor] | None
OPSET = 18
EXAMPLE_BATCH = 2
"""A batch of one would be taken for a constant."""


def export_program(model: nn.Module, inputs: ExportInputs = None) -> torch.export.ExportedProgram:
    """Return the model as an exported program, whose batch may have any size.

    Args:
        model: a transformers model, merged or not, in evaluation mode.
        inputs: keyword arguments, or the main input alone, with a batch of at least two; by default random ones of
            the config's shape.

    Raises:
        ValueError: the model is in training mode, or its number of tokens depends on the images.
    """
    root = unwrap(model)
    _check(root)
    inputs = _example(root, inputs)
    with torch.no_grad(), _passes_kept(root):
        return torch.export.export(root, (), kwargs=inputs, dynamic_shapes=_any_batch(inputs), strict=False)


def export_onnx(model: nn.Module, path: str | Path, inputs: ExportInputs = None) -> Path:
    """Write the model as ONNX, opset 18, standard operators only, with a batch of any size; returns the path.

    Inputs and outputs have the model's names; outputs that are `None` are left out. Weights of more than 2 GB go to a
    file beside it. Needs `pip install "hf_tome[export]"`.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: as `export_program`.
    """
    path, root = Path(path), unwrap(model)
    translations = _translations()  # tells at once where packages are missing
    inputs = _example(root, inputs)
    program = export_program(root, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            output_names=_output_names(root, inputs),
            verbose=False,
            custom_translation_table=translations,
        )
        if exported is None:
            raise RuntimeError("torch.onnx.export returned no program.")
        _name_batch(exported.model.graph)
        exported.save(str(path))
    return path


def difference_in_onnxruntime(model: nn.Module, path: str | Path, inputs: Mapping[str, Tensor] | None = None) -> float:
    """Run an exported file in onnxruntime, and return by how much its outputs differ from the model's at most.

    The batch has one sample more than the one that was exported with.

    Raises:
        ImportError: onnxruntime is missing.
    """
    import onnxruntime

    root = unwrap(model)
    inputs = example_inputs(root, EXAMPLE_BATCH + 1, seed=1) if inputs is None else inputs
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = session.run(None, {name: tensor.cpu().numpy() for name, tensor in inputs.items()})
    with torch.no_grad():
        outputs = _outputs(root(**inputs))
    names = [output.name for output in session.get_outputs()]
    pairs = [(torch.from_numpy(value), outputs[name].cpu()) for name, value in zip(names, values)]
    return max(float((exported - other).abs().max()) for exported, other in pairs)


def _example(root: Any, inputs: Any) -> dict[str, Tensor]:
    """Return the keyword arguments to export with; a tensor alone is the model's main input.

    Raises:
        TypeError: they are something else.
        ValueError: the batch is too small to be told from a constant.
    """
    if inputs is None:
        return example_inputs(root, EXAMPLE_BATCH)
    if isinstance(inputs, (tuple, list)) and len(inputs) == 1:  # as torch.export and torch.onnx take it
        inputs = inputs[0]
    if isinstance(inputs, Tensor):
        inputs = {root.main_input_name: inputs}
    if not isinstance(inputs, Mapping) or not all(isinstance(value, Tensor) for value in inputs.values()):
        raise TypeError(
            f"`inputs` is a {type(inputs).__name__}; it takes the model's keyword arguments, as in "
            f"{{{root.main_input_name!r}: torch.randn(2, 3, 224, 224)}}, or the tensor alone."
        )
    sizes = {name: value.shape[0] for name, value in inputs.items() if value.ndim}
    if sizes and min(sizes.values()) < EXAMPLE_BATCH:
        raise ValueError(
            f"The inputs are a batch of 1, which would become a constant; pass a batch of {EXAMPLE_BATCH}."
        )
    return dict(inputs)


def _outputs(output: Any) -> dict[str, Tensor]:
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


def _output_names(root: nn.Module, inputs: Mapping[str, Tensor]) -> list[str]:
    with torch.no_grad():
        return list(_outputs(root(**inputs)))


def _check(root: nn.Module) -> None:
    if root.training:
        raise ValueError("The model is in training mode; call `model.eval()` before exporting it.")
    if any(depends_on_images(target) for target in targets(root)):
        raise ValueError(
            "With MaMe's threshold the number of tokens depends on the images, and a graph has fixed shapes. Set "
            "`keep_ratio`, which fixes the number, as in MergeConfig(method='mame', keep_ratio=0.5)."
        )


def _any_batch(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    return {name: {0: torch.export.Dim("batch", min=1)} for name in inputs}


def _name_batch(graph: Any) -> None:
    """Call the first axis of the inputs `batch` wherever it stands; the exporter gives it a name such as s77."""
    names = {getattr(value.shape[0], "value", None) for value in graph.inputs} - {None}
    for value in (*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None and any(getattr(dim, "value", dim) in names for dim in value.shape):
            value.shape = type(value.shape)(
                ["batch" if getattr(dim, "value", dim) in names else dim for dim in value.shape]
            )


def _translations() -> dict[Any, Any]:
    """Return how operators that torch's exporter does not know are written in ONNX."""
    import onnxscript

    op: Any = onnxscript.opset18

    def stable_sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        # TopK puts the lower index first among equals, so it is stable by the standard.
        count = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: stable_sort}


@contextmanager
def _passes_kept(root: nn.Module) -> Iterator[None]:
    """Keep the summaries of the last passes: that of an export has no values, which no report can count."""
    kept = [(target.recorder, target.recorder.summary) for target in targets(root)]
    try:
        yield
    finally:
        for recorder, summary in kept:
            recorder.summary = summary


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks, on packages that no model here needs, from standard error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

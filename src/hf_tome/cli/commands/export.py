"""`hf-tome export`: a merged model as ONNX or as an exported program."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common import DebugOption, Format, FormatOption, example, parse_configs
from ..tables import file_row, write_rows

EXAMPLE = example(
    "hf-tome export --model facebook/deit-tiny-patch16-224 --config r=8 --out deit-r8.onnx",
    "writes the model with 8 tokens merged in each block as ONNX with a batch of any size, runs it in onnxruntime, "
    "and prints the file, its size and by how much its outputs differ from PyTorch's.",
)

TOLERANCE = 1e-3
"""Outputs that differ by more than this from PyTorch's are an error: rounding alone stays far below."""


def export_command(
    model: Annotated[str, typer.Option(help="Hub id or folder of the model.")],
    config: Annotated[str, typer.Option(help="The merge config, as for `hf-tome eval`; r=0 for none.")] = "r=8",
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, or .pt2 for torch.export.")] = Path(
        "model.onnx"
    ),
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Run the ONNX file and compare it with PyTorch.")
    ] = True,
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Export a merged model, with a batch of any size. Of a model with a text tower, the image tower is exported."""
    (merge_config,) = parse_configs([config])
    writer = WRITERS.get(out.suffix)
    if writer is None:
        raise ValueError(f"--out is {str(out)!r}; it takes a file name that ends in {' or '.join(WRITERS)}.")

    from ...api import apply
    from ...config import format_config
    from ...visualize.inputs import load_model

    loaded, _ = load_model(model, "cpu")
    apply(loaded, merge_config)
    path = _exported_path(loaded)
    difference = writer(attrgetter(path)(loaded) if path else loaded, out, check)
    description = {"config": format_config(merge_config), "part": path or "all", "difference": difference}
    files = [out, *sorted(out.parent.glob(f"{out.name}.data"))]  # of a large model the weights are beside the graph
    write_rows([{**file_row(file), **description} for file in files], format)


def _exported_path(model: Any) -> str:
    """Return where the tower of a model with text is, "" for a model that is exported as a whole."""
    from ...api import targets

    return targets(model)[0].path if hasattr(model.config, "text_config") else ""


def _write_onnx(model: Any, out: Path, check: bool) -> float | None:
    """Write the file, and return by how much its outputs differ from PyTorch's if that is to be checked."""
    from ...hub.export import difference_in_onnxruntime, export_onnx

    export_onnx(model, out)
    if not check:
        return None
    difference = difference_in_onnxruntime(model, out)
    if not difference <= TOLERANCE:
        raise RuntimeError(f"in onnxruntime the outputs of {out} differ by {difference:.1e} from PyTorch's")
    return difference


def _write_program(model: Any, out: Path, check: bool) -> None:
    import torch

    from ...hub.export import export_program

    out.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(export_program(model), out)


WRITERS: dict[str, Callable[[Any, Path, bool], float | None]] = {".onnx": _write_onnx, ".pt2": _write_program}
"""How a file is written, by the end of its name."""

"""`hf-tome export`: a merged model as ONNX or as an exported program."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import DebugOption, example, parse_configs, say

EXAMPLE = example(
    "hf-tome export --model facebook/deit-tiny-patch16-224 --config r=8 --out deit-r8.onnx",
    "writes the model with 8 tokens merged in each block as ONNX with a batch of any size, runs it in onnxruntime, "
    "and prints the name of the file written.",
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
    debug: DebugOption = False,
) -> None:
    """Export a merged model, with a batch of any size. Of a model with a text tower, the image tower is exported."""
    (merge_config,) = parse_configs([config])
    writer = WRITERS.get(out.suffix)
    if writer is None:
        raise ValueError(f"--out is {str(out)!r}; it takes a file name that ends in {' or '.join(WRITERS)}.")

    from ..apply import apply
    from .pictures import load_model

    loaded, _ = load_model(model, "cpu")
    writer(_exported_part(apply(loaded, merge_config)), out, check)
    print(out)


def _exported_part(model: Any) -> Any:
    from ..apply import towers

    if not hasattr(model.config, "text_config"):
        return model
    path = towers(model)[0].path
    say(f"Exporting the image tower, {path}")
    return attrgetter(path)(model)


def _write_onnx(model: Any, out: Path, check: bool) -> None:
    from ..export import difference_in_onnxruntime, export_onnx

    export_onnx(model, out)
    if not check:
        return
    difference = difference_in_onnxruntime(model, out)
    say(f"In onnxruntime the outputs differ by at most {difference:.1e}")
    if not difference <= TOLERANCE:
        raise RuntimeError(f"in onnxruntime the outputs of {out} differ by {difference:.1e} from PyTorch's")


def _write_program(model: Any, out: Path, check: bool) -> None:
    import torch

    from ..export import export_program

    out.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(export_program(model), out)


WRITERS = {".onnx": _write_onnx, ".pt2": _write_program}
"""How a file is written, by the end of its name."""

"""`hf-tome show`: a picture of which patches of an image were merged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import DebugOption, DeviceOption, example, parse_configs, pick_device

EXAMPLE = example(
    "hf-tome show cat.jpg --model facebook/deit-tiny-patch16-224 --config r=16 --out merged.png",
    "draws cat.jpg as the model sees it, beside the tokens left at the end: each in the mean colour of its patches, "
    "bordered in a colour of its own.",
)


def show_command(
    image: Annotated[Path, typer.Argument(help="The image file.", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="Hub id or folder of the model.")],
    config: Annotated[str, typer.Option(help="The merge config, as for `hf-tome eval`.")] = "r=16",
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("merged.png"),
    all_blocks: Annotated[
        bool, typer.Option("--all-blocks", help="Draw the tokens after each block, not just the last.")
    ] = False,
    device: DeviceOption = "auto",
    debug: DebugOption = False,
) -> None:
    """Draw which patches of an image were merged, and print the name of the file written."""
    (merge_config,) = parse_configs([config])

    from ..visualize import progression
    from .pictures import load_model, open_image, trace_image

    loaded, processor = load_model(model, pick_device(device))
    view, traced, grid = trace_image(loaded, processor, open_image(image), merge_config)
    blocks = range(len(traced)) if all_blocks else [len(traced) - 1]
    out.parent.mkdir(parents=True, exist_ok=True)
    progression(view, [traced[block] for block in blocks], grid, blocks=blocks).save(out)
    print(out)

"""`hf-tome show`: which patches of an image, a clip or a spectrogram were merged, as a picture or an animation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...media.limits import parse_limits
from ..common import (
    CONFIG_HELP,
    DebugOption,
    DeviceOption,
    Format,
    FormatOption,
    MediaLimitsOption,
    example,
    parse_configs,
    pick_device,
    say,
)
from ..tables import file_row, write_rows

if TYPE_CHECKING:
    from ...visualize import Traced

EXAMPLE = example(
    "hf-tome show cat.jpg --model facebook/deit-tiny-patch16-224 --config r=8 --config method=mame --out merged.png",
    "draws cat.jpg as the model sees it, and beside it the tokens left at the end by ToMe and by MaMe: each in the "
    "mean colour of its patches, bordered in a colour of its own.",
)

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
ANIMATIONS = (".gif", ".mp4")
KINDS = {"--heatmap": ("image", "audio"), "--follow": ("video",)}
"""The options that only some kinds of models have a use for."""


def show_command(
    image: Annotated[
        Path,
        typer.Argument(help="The image; for a video model the clip, for AST the sound.", exists=True, dir_okay=False),
    ],
    model: Annotated[str, typer.Option(help="Hub id or folder of the model.")],
    config: Annotated[list[str], typer.Option(help=CONFIG_HELP)] = ["r=16"],  # noqa: B006 (typer copies it)
    out: Annotated[
        Path,
        typer.Option(
            help="The file to write: .png, .jpg or .webp for a picture; .gif or .mp4 for an animation, of a clip over "
            "its frames, else over the blocks."
        ),
    ] = Path("merged.png"),
    all_blocks: Annotated[
        bool, typer.Option("--all-blocks", help="Draw the tokens after each block, not just the last.")
    ] = False,
    heatmap: Annotated[
        bool,
        typer.Option("--heatmap", help="Of an image or a sound, draw how many patches each token holds, in colours."),
    ] = False,
    follow: Annotated[
        str | None,
        typer.Option(
            help="Of a clip, also draw one token through the frames: auto, a small one that moves; X,Y or X,Y,FRAME, "
            "the one at this pixel of what the model sees; or none. Else auto."
        ),
    ] = None,
    media_limits: MediaLimitsOption = "",
    device: DeviceOption = "auto",
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Draw which patches of an image, a clip or a sound were merged, and print the file and the tokens left.

    A token has the same colours wherever its patches lie, in all frames. Several `--config` are drawn side by side;
    those of a clip in rows, as time runs to the right there.
    """
    _check_name(out)
    animated = out.suffix.lower() in ANIMATIONS
    if all_blocks and animated:
        raise typer.BadParameter(f"--all-blocks is for pictures ({', '.join(PICTURES)}), and {out.name} moves.")
    followed = _read_follow(follow or "auto")
    configs, limits = parse_configs(config), parse_limits(media_limits)

    from ...config import MergeConfig, format_config
    from ...config.text import short_name
    from ...visualize import compare_pictures, input_kind, save_animation, trace_input
    from ...visualize.inputs import load_model, open_input
    from ...visualize.predictions import predict
    from ...visualize.show import labelled_sheet

    loaded, processor = load_model(model, pick_device(device))
    kind = input_kind(loaded)
    _check_options(kind, {"--heatmap": heatmap, "--follow": follow is not None})
    content = open_input(image, loaded, processor, limits)
    traced = [trace_input(loaded, processor, content, each) for each in configs]
    texts = [format_config(each) for each in configs]
    predictions = [predict(loaded, processor, content, each) for each in (MergeConfig(), *configs)]
    out.parent.mkdir(parents=True, exist_ok=True)
    if animated:
        names = [short_name(text) for text in texts]
        save_animation(compare_pictures(traced, names, follow=followed, heat=heatmap), out)
    else:
        options = {"all_blocks": all_blocks, "follow": followed, "heat": heatmap}
        labelled_sheet(traced, configs, predictions, **options).save(out)
    unmerged, *merged = ({} if prediction is None else {"prediction": str(prediction)} for prediction in predictions)
    if unmerged:
        say(f"unmerged: {unmerged['prediction']}")
    rows = zip(texts, traced, merged)
    write_rows(
        [{**file_row(out), "config": text, **_tokens(item), **more} for text, item, more in rows],
        format,
    )


def _tokens(traced: Traced) -> dict[str, Any]:
    from ...visualize import count_tokens

    return {"patches": traced.grid.patches, "tokens": count_tokens(traced.sources[-1])}


def _check_options(kind: str, given: dict[str, bool]) -> None:
    """Refuse an option that means nothing for what the model takes."""
    for name, is_given in given.items():
        if is_given and kind not in KINDS[name]:
            raise typer.BadParameter(f"{name} is for {' and '.join(KINDS[name])} models, and this one takes {kind}s.")


def _check_name(out: Path) -> None:
    """Refuse a name before the model runs, rather than after it."""
    if out.suffix.lower() not in PICTURES + ANIMATIONS:
        raise ValueError(f"Cannot write {out}: --out takes a name that ends in {', '.join(PICTURES + ANIMATIONS)}.")


def _read_follow(text: str) -> bool | tuple[int, ...]:
    if text in ("auto", "none"):
        return text == "auto"
    numbers = text.split(",")
    if len(numbers) not in (2, 3) or not all(number.strip().isdigit() for number in numbers):
        raise typer.BadParameter(f"--follow {text!r}: it takes auto, none, X,Y or X,Y,FRAME.")
    return tuple(map(int, numbers))

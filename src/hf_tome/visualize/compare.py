"""One input under several merge configs: a sheet to print, or the pictures of an animation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
import torch

from .drawing import PRUNED, count_tokens
from .image import enlarged, merged_image, size_heatmap
from .sheet import GAP, contact_sheet, readable_scale
from .traced import Traced
from .video import followed_frames, merged_frames, moving_token, token_at

if TYPE_CHECKING:
    from PIL import Image

Follow = bool | tuple[int, ...]
"""Whether to follow a token through a clip, or which: the one at a pixel (x, y) or (x, y, frame)."""

_WIDE = 2.5  # times as wide as high, as spectrograms are: one below the other
_STEPS = 8  # of a clip that a sheet has room for


def compare_sheet(
    traced: Sequence[Traced],
    names: Sequence[str],
    *,
    all_blocks: bool = False,
    follow: Follow = True,
    heat: bool = False,
    enlarge: int = 1,
    input_label: str = "input",
    after: Sequence[str | None] = (),
    dark: bool = False,
) -> Image.Image:
    """Draw one input under several merge configs.

    Images stand side by side, a column a config, with `all_blocks` a row a block; spectrograms one below the other. Of
    a clip time runs to the right, evenly thinned to 8 steps, and each config has a row, and with `follow` another for
    one of its tokens (see `followed_frames`).

    Args:
        traced: the same input, once for each config.
        names: what to call the configs.
        follow: of a clip, `moving_token`, or the token at a pixel (x, y) or (x, y, frame), or `False` for none.
        heat: of an image or a spectrogram, draw how many patches each token holds (see `size_heatmap`).
        enlarge: of an image or a spectrogram, draw it so many times as large as is readable.
        input_label: what stands over the input.
        after: what to add to the label of each config's last block, such as a prediction; `None` for nothing.
        dark: light labels on a dark background.
    """
    if traced[0].grid.steps > 1:
        return _clip_sheet(traced, names, all_blocks, follow, input_label, after, dark)
    view, grid = traced[0].frames[0], traced[0].grid
    scale, blocks = enlarge * readable_scale(view, grid), _blocks(traced[0], all_blocks)
    columns = [[_drawn(item, block, scale, heat) for block in blocks] for item in traced]
    labels = [[_label(item, name, block, all_blocks) for block in blocks] for item, name in zip(traced, names)]
    for texts, more in zip(labels, after):
        texts[-1] += f", {more}" * (more is not None)
    wide = view.width > _WIDE * view.height
    if len(traced) == 1 or wide:  # nothing to compare along the rows, so fill them
        pictures, texts = sum(columns, [traced[0].framed(enlarged(view, scale))]), sum(labels, [input_label])
        return contact_sheet(pictures, 1 if wide else min(4, len(pictures)), texts, dark=dark)
    first: list[Image.Image | None] = [enlarged(view, scale), *[None] * (len(blocks) - 1)]
    rows = zip(first, *columns)
    texts = [text for row in zip([input_label, *[""] * (len(blocks) - 1)], *labels) for text in row]
    return contact_sheet([picture for row in rows for picture in row], 1 + len(traced), texts, dark=dark)


def compare_pictures(
    traced: Sequence[Traced], names: Sequence[str], *, follow: Follow = True, heat: bool = False
) -> list[Image.Image]:
    """Return the pictures of an animation of one input under several merge configs, side by side.

    Of an image or a spectrogram a picture a block; of a clip a picture a frame.
    """
    if traced[0].grid.steps > 1:
        return _clip_pictures(traced, names, follow)
    view, grid = traced[0].frames[0], traced[0].grid
    scale, wide = readable_scale(view, grid), view.width > _WIDE * view.height
    shown = traced[0].framed(enlarged(view, scale))
    pictures = []
    for block in _blocks(traced[0], True):
        merged = [_drawn(item, block, scale, heat) for item in traced]
        labels = ["input", *(_label(item, name, block, True) for item, name in zip(traced, names))]
        pictures.append(contact_sheet([shown, *merged], 1 if wide else None, labels))
    return pictures


def _drawn(traced: Traced, block: int, scale: int, heat: bool) -> Image.Image:
    view, source, grid = traced.frames[0], traced.sources[block], traced.grid
    if not heat:
        return traced.framed(merged_image(view, source, grid, scale=scale))
    kept = source[source != PRUNED]
    sizes = torch.zeros_like(source)
    sizes[source != PRUNED] = kept.bincount()[kept]
    return traced.framed(size_heatmap(sizes, grid, view, scale=scale))


def _clip_sheet(
    traced: Sequence[Traced],
    names: Sequence[str],
    all_blocks: bool,
    follow: Follow,
    input_label: str,
    after: Sequence[str | None],
    dark: bool,
) -> Image.Image:
    frames, grid = traced[0].frames, traced[0].grid
    scale = readable_scale(frames[0], grid)
    steps = np.linspace(0, grid.steps - 1, min(_STEPS, grid.steps)).round().astype(int)
    pictures = [enlarged(frames[step * grid.tubelet], scale) for step in steps]
    labels = [f"frame {step * grid.tubelet}" for step in steps]
    if input_label != "input":
        labels = [f"{input_label}, from frame 0 to {steps[-1] * grid.tubelet}", *[""] * (len(steps) - 1)]
    for item, name, more in zip_longest(traced, names, after[: len(traced)]):
        for block in _blocks(item, all_blocks):
            merged = merged_frames(frames, item.sources[block], grid, scale=scale)
            pictures += [merged[step] for step in steps]
            last = f", {more}" * (more is not None and block == len(item.sources) - 1)
            labels += [_label(item, name, block, all_blocks) + last, *[""] * (len(steps) - 1)]
        if follow:
            followed, label = _followed(item, follow, scale)
            pictures += [followed[step] for step in steps]
            labels += [f"{name}: {label}", *[""] * (len(steps) - 1)]
    return contact_sheet(pictures, len(steps), labels, dark=dark)


def _clip_pictures(traced: Sequence[Traced], names: Sequence[str], follow: Follow) -> list[Image.Image]:
    frames, grid = traced[0].frames, traced[0].grid
    scale = readable_scale(frames[0], grid)
    rows = [[enlarged(frame, scale) for frame in frames]]
    labels = ["input"]
    for item, name in zip(traced, names):
        last = len(item.sources) - 1
        rows.append(merged_frames(frames, item.sources[last], grid, scale=scale))
        labels.append(_label(item, name, last, False))
        if follow:
            followed, label = _followed(item, follow, scale)
            rows.append(followed)
            labels.append(label)
    shown = [[row[index if row is rows[0] else index // grid.tubelet] for row in rows] for index in range(len(frames))]
    return [contact_sheet(pictures, None, labels, gap=GAP) for pictures in shown]


def _followed(traced: Traced, follow: Follow, scale: int) -> tuple[list[Image.Image], str]:
    frames, source, grid = traced.frames, traced.sources[-1], traced.grid
    token = moving_token(source, grid) if isinstance(follow, bool) else token_at(source, grid, frames[0].size, *follow)
    seen = int((source.view(grid.steps, -1) == token).any(dim=1).sum())
    return followed_frames(frames, source, grid, token, scale=scale), f"one token, in {seen} of {grid.steps} steps"


def _blocks(traced: Traced, all_blocks: bool) -> range:
    count = len(traced.sources)
    return range(count) if all_blocks else range(count - 1, count)


def _label(traced: Traced, name: str, block: int, all_blocks: bool) -> str:
    tokens = f"{count_tokens(traced.sources[block])} of {traced.grid.patches} tokens"
    return f"{name}, block {block}: {tokens}" if all_blocks else f"{name}: {tokens}"

"""Where a model's tokens lie on what it saw: rows and columns of patches, and steps in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..adapters.encoders.dims import _pair


@dataclass(frozen=True)
class TokenGrid:
    """The places of tokens, in the order that models have them: step by step, row by row.

    Attributes:
        rows, columns: of patches in a frame.
        steps: tokens in time, 1 but in a video.
        tubelet: frames that a token covers.
        row_starts, column_starts: the pixel at which each row or column begins, where patches overlap; else they share
            the picture evenly.
        covers: height and width in pixels of what the patches cover of the model's input; `None` for all of it. Patch
            embeddings leave out what does not fill a patch on the right and below.

    Raises:
        ValueError: there is no row, column, step or frame.
    """

    rows: int
    columns: int
    steps: int = 1
    tubelet: int = 1
    row_starts: tuple[int, ...] | None = None
    column_starts: tuple[int, ...] | None = None
    covers: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.steps, self.tubelet) < 1:
            raise ValueError(
                f"`grid` has {self.rows} rows, {self.columns} columns and {self.steps} steps of {self.tubelet} "
                "frames; it takes the rows and columns of patches. Tokens without a grid cannot be drawn."
            )

    @classmethod
    def of(cls, grid: TokenGrid | tuple[int, int]) -> TokenGrid:
        """Return a grid from (rows, columns), or as it is."""
        return grid if isinstance(grid, TokenGrid) else cls(*grid)

    @property
    def patches(self) -> int:
        """Number of tokens before any merge, without the special ones."""
        return self.steps * self.rows * self.columns

    @property
    def frames(self) -> int:
        """Number of frames that the grid covers."""
        return self.steps * self.tubelet

    def starts(self, size: tuple[int, int], scale: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return the first pixel of each row and each column in a picture of (height, width), enlarged already."""
        return (
            _starts(self.rows, self.row_starts, size[0], scale),
            _starts(self.columns, self.column_starts, size[1], scale),
        )


def _starts(count: int, given: tuple[int, ...] | None, length: int, scale: int) -> np.ndarray:
    if given is not None:
        return np.array(given) * scale
    return -(-np.arange(count) * length // count)  # rounded up


def token_grid(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    """Return the grid of a tower's tokens for one processed input.

    Args:
        config: the tower's config.
        inputs: what the processor returned, a batch of one.

    Raises:
        ValueError: the input is smaller than a patch, or in several tiles.
    """
    return GRIDS.get(config.model_type, _image)(config, inputs)


def _image(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    shape = tuple(inputs["pixel_values"].shape)
    if len(shape) != 4 or shape[0] != 1:
        raise ValueError(
            f"The processor returns pixel values of shape {shape} for one picture; only one view (1, channels, "
            "height, width) can be drawn. Switch off cutting into tiles in the model's preprocessor_config.json."
        )
    (rows, columns), covers = _fit(shape[-2:], _pair(config.patch_size))
    return TokenGrid(rows, columns, covers=covers)


def _naflex(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    rows, columns = inputs["spatial_shapes"][0].tolist()
    return TokenGrid(rows, columns)


def _video(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    size = config.tubelet_size  # of VideoMAE the frames, of ViViT (frames, height, width)
    tubelet, patch = (size, _pair(config.patch_size)) if isinstance(size, int) else (size[0], tuple(size[1:]))
    frames, _, height, width = inputs["pixel_values"].shape[1:]
    if frames < tubelet:
        raise ValueError(f"The clip has {frames} frames, but a token of this model covers {tubelet}.")
    (rows, columns), covers = _fit((height, width), patch)
    return TokenGrid(rows, columns, steps=frames // tubelet, tubelet=tubelet, covers=covers)


def _spectrogram(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    times, bins = inputs["input_values"].shape[1:]
    size, strides = config.patch_size, (config.frequency_stride, config.time_stride)
    if min(times, bins) < size:
        raise ValueError(f"The spectrogram has {times} x {bins} values, less than one patch of {size} x {size}.")
    rows, columns = ((length - size) // stride + 1 for length, stride in zip((bins, times), strides))
    row_starts, column_starts = (
        # Overlapping patches: each pixel goes to the patch whose middle is nearest, so that cells are a stride apart.
        (0, *((size - stride + 1) // 2 + stride * index for index in range(1, count)))
        for count, stride in zip((rows, columns), strides)
    )
    # Patches count from the lowest frequency up, rows of a picture from the top down.
    row_starts = (0, *(bins - start for start in row_starts[:0:-1]))
    return TokenGrid(rows, columns, row_starts=row_starts, column_starts=column_starts)


def _fit(size: tuple[int, ...], patch: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return rows and columns of patches, and the height and width that they cover."""
    rows, columns = size[0] // patch[0], size[1] // patch[1]
    if not rows or not columns:
        raise ValueError(
            f"The model sees {size[1]} x {size[0]} pixels, less than one patch of {patch[1]} x {patch[0]}. Use a "
            "larger picture, or a processor that resizes."
        )
    return (rows, columns), (rows * patch[0], columns * patch[1])


GRIDS: dict[str, Callable[[Any, Mapping[str, Tensor]], TokenGrid]] = {
    "siglip2_vision_model": _naflex,
    "videomae": _video,
    "vivit": _video,
    "audio-spectrogram-transformer": _spectrogram,
}
"""By model type, how the grid follows from config and input; an image where not listed."""

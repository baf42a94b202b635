"""What a family's models take as input, and where the patches of one input lie: rows, columns and steps in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


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


@dataclass(frozen=True)
class InputFormat:
    """The input of a family of encoders.

    Attributes:
        medium: `"image"`, `"video"` or `"audio"`.
        shape: shape of one input without the batch, from the tower's config and an image size that replaces the
            config's, if not `None`. `None` where the model takes more than one tensor.
        patches: number of patches of one input, and number of values in each, from the tower's config.
        grid: where the patches of a processed input, a batch of one, lie on it, from the tower's config and the input.
            It raises a `ValueError` for inputs that are smaller than a patch or in several tiles.
    """

    medium: str
    shape: Callable[[Any, int | None], tuple[int, ...]] | None
    patches: Callable[[Any], tuple[int, int]]
    grid: Callable[[Any, Mapping[str, Tensor]], TokenGrid]


def height_and_width(size: Any) -> tuple[int, int]:
    """Return a size that is one number or two of them as two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


# --- images ----------------------------------------------------------------------------------------------------------


def _image_shape(config: Any, image_size: int | None) -> tuple[int, ...]:
    return (config.num_channels, *height_and_width(image_size or config.image_size))


def _image_patches(config: Any) -> tuple[int, int]:
    (height, width), (p, q) = height_and_width(config.image_size), height_and_width(config.patch_size)
    return (height // p) * (width // q), p * q * config.num_channels


def _padded_image_patches(config: Any) -> tuple[int, int]:
    p, q = height_and_width(config.patch_size)
    return config.num_patches, p * q * config.num_channels  # NaFlex: the processor pads to a fixed number


def _image_grid(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    shape = tuple(inputs["pixel_values"].shape)
    if len(shape) != 4 or shape[0] != 1:
        raise ValueError(
            f"The processor returns pixel values of shape {shape} for one picture; only one view (1, channels, "
            "height, width) can be drawn. Switch off cutting into tiles in the model's preprocessor_config.json."
        )
    (rows, columns), covers = _fit(shape[-2:], height_and_width(config.patch_size))
    return TokenGrid(rows, columns, covers=covers)


def _padded_image_grid(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    rows, columns = inputs["spatial_shapes"][0].tolist()
    return TokenGrid(rows, columns)


def _fit(size: tuple[int, ...], patch: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return rows and columns of patches, and the height and width that they cover."""
    rows, columns = size[0] // patch[0], size[1] // patch[1]
    if not rows or not columns:
        raise ValueError(
            f"The model sees {size[1]} x {size[0]} pixels, less than one patch of {patch[1]} x {patch[0]}. Use a "
            "larger picture, or a processor that resizes."
        )
    return (rows, columns), (rows * patch[0], columns * patch[1])


IMAGE = InputFormat("image", _image_shape, _image_patches, _image_grid)
PADDED_IMAGE = InputFormat("image", None, _padded_image_patches, _padded_image_grid)
"""Images of any aspect ratio, padded to a fixed number of patches (NaFlex)."""


# --- clips -----------------------------------------------------------------------------------------------------------


def _video_shape(config: Any, image_size: int | None) -> tuple[int, ...]:
    return (config.num_frames, *_image_shape(config, image_size))


def _tubelet(config: Any) -> tuple[int, tuple[int, int]]:
    """Return the frames that a token covers, and the height and width of its patch."""
    size = config.tubelet_size  # of VideoMAE the frames, of ViViT (frames, height, width)
    return (size, height_and_width(config.patch_size)) if isinstance(size, int) else (size[0], (size[1], size[2]))


def _video_patches(config: Any) -> tuple[int, int]:
    (height, width), (tubelet, (p, q)) = height_and_width(config.image_size), _tubelet(config)
    steps = config.num_frames // tubelet
    return steps * (height // p) * (width // q), tubelet * p * q * config.num_channels


def _video_grid(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    tubelet, patch = _tubelet(config)
    frames, _, height, width = inputs["pixel_values"].shape[1:]
    if frames < tubelet:
        raise ValueError(f"The clip has {frames} frames, but a token of this model covers {tubelet}.")
    (rows, columns), covers = _fit((height, width), patch)
    return TokenGrid(rows, columns, steps=frames // tubelet, tubelet=tubelet, covers=covers)


VIDEO = InputFormat("video", _video_shape, _video_patches, _video_grid)


# --- recordings ------------------------------------------------------------------------------------------------------


def _spectrogram_shape(config: Any, image_size: int | None) -> tuple[int, ...]:
    return (config.max_length, config.num_mel_bins)


def _spectrogram_patches(config: Any) -> tuple[int, int]:
    bins = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    steps = (config.max_length - config.patch_size) // config.time_stride + 1
    return bins * steps, config.patch_size**2


def _spectrogram_grid(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
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


SPECTROGRAM = InputFormat("audio", _spectrogram_shape, _spectrogram_patches, _spectrogram_grid)

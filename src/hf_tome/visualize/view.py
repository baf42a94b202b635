"""What a model saw of a picture, a clip or a sound, so that its patches line up with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .drawing import to_image

if TYPE_CHECKING:
    from PIL import Image


def model_view(image: Image.Image, processor: Any) -> Image.Image:
    """Return the picture as an image processor resized and cropped it, so that the model's patches line up with it.

    Args:
        processor: an image processor, or a processor that holds one.

    Raises:
        ValueError: what the processor returns is not one picture.
    """
    processor = getattr(processor, "image_processor", processor)
    inputs = processor(images=image.convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="pt")
    values = inputs["pixel_values"][0].float()
    if "spatial_shapes" in inputs:
        values = _unpatch(values, *inputs["spatial_shapes"][0].tolist())
    if values.dim() == 4 and len(values) == 1:  # models that cut into tiles, but did not here
        values = values[0]
    if values.dim() != 3 or values.shape[0] not in (1, 3):
        raise ValueError(
            f"{type(processor).__name__} returns pixel values of shape {tuple(values.shape)} for an image; supported "
            "are (channels, height, width) and SigLIP 2's patches. Crop the image yourself as the model sees it."
        )
    return _picture(values)


def model_frames(frames: Sequence[Any], processor: Any) -> list[Image.Image]:
    """Return the frames of a clip, arrays (H, W, 3) or images, as an image processor resized and cropped them.

    Raises:
        ValueError: what the processor returns is not one clip.
    """
    plain: dict[str, Any] = {"do_rescale": False, "do_normalize": False}
    if getattr(processor, "offset", False):  # of ViViT, which belongs to rescaling
        plain["offset"] = False
    inputs = processor(list(frames), **plain, return_tensors="pt")
    values = inputs["pixel_values"].float()
    if values.dim() != 5 or len(values) != 1:
        raise ValueError(
            f"{type(processor).__name__} returns pixel values of shape {tuple(values.shape)} for a clip; supported "
            "is (1, frames, channels, height, width)."
        )
    return [_picture(frame) for frame in values[0]]


def spectrogram_view(values: torch.Tensor) -> Image.Image:
    """Draw a log-mel spectrogram (times, bins) in colours, time to the right and frequency upwards.

    The least value is black and the largest bright, as the scale of the values differs from model to model.
    """
    from matplotlib import colormaps

    levels = torch.as_tensor(values).detach().cpu().float().numpy().T[::-1]  # (times, bins) -> (bins, times)
    low, high = levels.min(), levels.max()
    return to_image(255 * colormaps["magma"]((levels - low) / max(high - low, 1e-6))[..., :3])


def _picture(values: torch.Tensor) -> Image.Image:
    return to_image(values.expand(3, -1, -1).permute(1, 2, 0).numpy())  # (C, H, W) -> (H, W, 3)


def _unpatch(patches: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    side = int((patches.shape[-1] / 3) ** 0.5)
    grid = patches[: rows * columns].view(rows, columns, side, side, 3)  # the rest is padding
    return grid.permute(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)  # -> (C, H, W)

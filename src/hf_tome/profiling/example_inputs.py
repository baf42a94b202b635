"""Random inputs of the shape a model's config asks for: to measure and to export with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..adapters.encoders.dims import _pair
from ..adapters.encoders.plan import unwrap


def example_inputs(
    model: object, batch_size: int = 1, *, image_size: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Return random inputs for a vision, video or audio model, on its device and in its dtype.

    Args:
        model: a transformers model with one input tensor; of a model of two towers take the one that merges.
        image_size (`int`, *optional*): instead of the config's.

    Raises:
        ValueError: the shape of the model's inputs is not known here.
    """
    root = unwrap(model)
    config, name = root.config, root.main_input_name
    with_text = name == "input_ids"
    config = getattr(config, "vision_config", None) or config
    shape = SHAPES.get(config.model_type, _image if hasattr(config, "image_size") else None)
    if shape is None or with_text:
        raise ValueError(
            f"The shape of the inputs of a model of type {config.model_type!r} is not known; pass inputs, "
            "or take its vision tower."
        )
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch_size, *shape(config, image_size), generator=generator)
    parameter = next(root.parameters())
    return {name: values.to(parameter.device, parameter.dtype)}


def _image(config: Any, image_size: int | None) -> tuple[int, ...]:
    return (config.num_channels, *_pair(image_size or config.image_size))


def _video(config: Any, image_size: int | None) -> tuple[int, ...]:
    return (config.num_frames, *_image(config, image_size))


def _spectrogram(config: Any, image_size: int | None) -> tuple[int, ...]:
    return (config.max_length, config.num_mel_bins)


SHAPES: dict[str, Callable[[Any, int | None], tuple[int, ...]]] = {
    "videomae": _video,
    "vivit": _video,
    "audio-spectrogram-transformer": _spectrogram,
}
"""By model type, the shape of one input; an image where not listed."""

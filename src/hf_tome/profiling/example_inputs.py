"""Random inputs of the shape a model's config asks for: to measure and to export with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapters.dense.towers import DENSE_TOWERS
from ..adapters.encoders.families.inputs import IMAGE
from ..adapters.encoders.families.registry import TOWERS, family_of, tower_config
from ..patching.unwrap import unwrap


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
    config = tower_config(config)
    family = family_of(config, {**TOWERS, **DENSE_TOWERS})
    default = IMAGE if hasattr(config, "image_size") else None  # also of models in which nothing merges
    inputs = default if family is None else family.inputs
    shape = None if inputs is None else inputs.shape
    if shape is None or with_text:
        raise ValueError(
            f"The shape of the inputs of a model of type {config.model_type!r} is not known; pass inputs, "
            "or take its vision tower."
        )
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch_size, *shape(config, image_size), generator=generator)
    parameter = next(root.parameters())
    return {name: values.to(parameter.device, parameter.dtype)}

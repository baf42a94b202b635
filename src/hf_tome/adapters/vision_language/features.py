"""Which hidden states of its vision tower a vision-language model reads, and how merged ones become image features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..encoders.carry import ForwardState

FIXED_SIZE = ("siglip_vision_model", "janus_vision_model")
"""Towers that add position embeddings to images of any size, and fail where they cannot be added."""


def check_image_size(pixel_values: Any, config: Any) -> None:
    """Raise a `ValueError` for images (..., H, W) of a size that the tower does not take."""
    vision = config.vision_config
    if vision.model_type not in FIXED_SIZE or not isinstance(pixel_values, Tensor):
        return
    size, side = tuple(pixel_values.shape[-2:]), vision.image_size
    if size != (side, side):
        raise ValueError(
            f"`pixel_values` hold images of {size[0]} x {size[1]} pixels, but the image size of this vision tower "
            f"is {side} x {side}. Use the model's own processor."
        )


def has_feature_layers(model: Any) -> bool:
    """Return whether a model reads hidden states of its tower, rather than the tower's output."""
    return getattr(getattr(model, "config", None), "vision_feature_layer", None) is not None


def read_layers(model: Any, num_layers: int, layers: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """Return the hidden states that a model reads, by the numbers of the blocks that they go into.

    They are `layers`, or those of the model's config, or else the last one.

    Raises:
        ValueError: one that the tower does not have.
    """
    if layers is None and not has_feature_layers(model):
        return (num_layers,)
    chosen = layers if layers is not None else model.config.vision_feature_layer
    chosen = [chosen] if isinstance(chosen, int) else list(chosen)
    beyond = [layer for layer in chosen if not -num_layers - 1 <= layer <= num_layers]
    if beyond:
        raise ValueError(
            f"`vision_feature_layer` names {beyond}, but a tower of {num_layers} blocks has hidden states 0 to "
            f"{num_layers}, or -{num_layers + 1} to -1."
        )
    return tuple(layer % (num_layers + 1) for layer in chosen)


def configured_layers(model: Any, num_layers: int) -> tuple[int, ...]:
    """Return the hidden states that a model's config names (see `read_layers`), none where it reads the output."""
    return read_layers(model, num_layers) if has_feature_layers(model) else ()


def cropped_tokens(model: Any, strategy: str | None = None) -> int:
    """Return how many leading tokens a model cuts off the hidden states of its tower.

    VipLLaVA has no choice, and cuts one; models that read their tower's output cut none.
    """
    if not has_feature_layers(model):
        return 0
    chosen = strategy if strategy is not None else getattr(model.config, "vision_feature_select_strategy", "default")
    return 1 if chosen == "default" else 0


def image_tokens(
    hidden_states: Sequence[Tensor] | Mapping[int, Tensor], reads: Sequence[int], state: ForwardState
) -> tuple[Tensor, Tensor | None]:
    """Return the tokens that a model reads, (B, M, C * len(reads)), and their sizes (B, M, 1), `None` if all are 1.

    They stand in the order of the places that they keep in the image, as language models have learnt to read them;
    padding stands anywhere, with size 0.
    """
    last = max(reads)
    tokens = _aligned(hidden_states, reads, state)
    state.bring(last, tokens.device)
    size, position = state.size[last], state.position[last]
    if position is None:
        return tokens, size
    order = position.argsort(dim=1)[..., None]  # (B, M, 1)
    return tokens.gather(1, order.expand_as(tokens)), None if size is None else size.gather(1, order)


def _aligned(
    hidden_states: Sequence[Tensor] | Mapping[int, Tensor], reads: Sequence[int], state: ForwardState
) -> Tensor:
    """Join the hidden states of several layers, (B, N_i, C) each, along their channels, with the last one's tokens.

    Merges between an earlier layer and the last one are applied to the earlier tokens as well, so that a merged
    token's features are those of its members in every layer.
    """
    last = max(reads)
    columns = []
    for layer in reads:
        x, size = hidden_states[layer].to(hidden_states[last].device), state.size[layer]
        for index in range(layer, last):
            match = state.match_for(index, x)
            if match is not None:
                size = None if size is None else size.to(x.device)
                x, size = match.merge(x, size)
        columns.append(x)
    return torch.cat(columns, dim=-1) if len(columns) > 1 else columns[0]


def split_real(features: Tensor, size: Tensor | None) -> list[Tensor]:
    """Split features (B, M, C) by image and leave out padding, which has size (B, M, 1) 0: B tensors (M_i, C)."""
    if size is None:
        return list(features)
    return [rows[real] for rows, real in zip(features, size[..., 0] > 0)]

"""Run a model's tower on one picture, clip or sound, and find where its patches went."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import torch

from ..adapters.encoders.families.inputs import TokenGrid
from ..api import merged, targets
from ..config import MergeConfig
from ..inspection.tracing import Trace, trace
from .axes import FRAME_SECONDS, SpectrogramAxes, with_axes
from .view import model_frames, model_view, spectrogram_view

if TYPE_CHECKING:
    from PIL import Image
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True)
class Traced:
    """One input as a model saw it, and where its patches went.

    Attributes:
        frames: the picture or the spectrogram, or the frames of the clip.
        grid: where the patches lie on it.
        sources: after each block, (patches,): the token that holds each patch, or -1 where it was pruned.
        axes: what a spectrogram covers; `None` for what is seen.
    """

    frames: list[Image.Image]
    grid: TokenGrid
    sources: list[torch.Tensor]
    axes: SpectrogramAxes | None = None

    def framed(self, picture: Image.Image) -> Image.Image:
        """Return a picture of this input with its axes, where it has some."""
        return picture if self.axes is None else with_axes(picture, self.axes)


def input_kind(model: PreTrainedModel) -> str:
    """Return what the first tower of a model takes: `"image"`, `"video"` or `"audio"`.

    Raises:
        UnsupportedModelError: tokens cannot be merged in this model.
    """
    with merged(model, MergeConfig()):
        return targets(model)[0].plan.family.inputs.medium


@torch.inference_mode()
def trace_input(model: PreTrainedModel, processor: Any, content: Any, config: MergeConfig) -> Traced:
    """Run the first tower of a model on one input with merging; a merge that the model has is left as it was.

    Args:
        processor: of images, for images and clips, or of sound.
        content: an image, the frames of a clip (T, H, W, 3) or the samples of a recording at the processor's rate.

    Raises:
        UnsupportedModelError: tokens cannot be merged in this model.
        ValueError: the input does not fit, the config does not, or the model's tokens do not cover the grid.
    """
    if config.where not in ("auto", "tower"):
        raise ValueError(
            f"Pictures show the tokens of a tower's blocks, and with where={config.where!r} none of them merges. "
            "Leave `where` out."
        )
    with merged(model, dataclasses.replace(config, trace=True)):
        target = targets(model)[0]
        module, family = target.module, target.plan.family
        medium = family.inputs.medium
        inputs = process_input(medium, processor, content).to(module.device)
        grid = family.inputs.grid(module.config, inputs)
        module(**_arguments(module, inputs, grid))
        traced = trace(model)
        last = target.plan.blocks_read
    first = _first_patch(module, grid, traced, padded="spatial_shapes" in inputs)
    sources = [source[0, first : first + grid.patches].cpu() for source in traced.by_block[:last]]
    if medium == "audio":  # rows of a picture run from the top down, those of the model from the lowest frequency up
        sources = [source.view(grid.rows, grid.columns).flip(0).flatten() for source in sources]
    axes = None
    if medium == "audio":
        axes = SpectrogramAxes(inputs["input_values"].shape[1] * FRAME_SECONDS, processor.sampling_rate / 2)
    return Traced(_view(medium, processor, content, inputs, grid), grid, sources, axes)


def process_input(medium: str, processor: Any, content: Any) -> Any:
    """Return a model's inputs for one image, clip or recording, by what `input_kind` says; see `trace_input`."""
    if medium == "audio":
        return processor(content, sampling_rate=processor.sampling_rate, return_tensors="pt")
    inputs = processor(content if medium == "image" else list(content), return_tensors="pt")
    if (
        medium == "image" and inputs["pixel_values"].dim() == 5
    ):  # (1, tiles, C, H, W) of models that may cut into tiles
        inputs["pixel_values"] = inputs["pixel_values"].flatten(0, 1)
    return inputs


def _arguments(module: Any, inputs: Any, grid: TokenGrid) -> dict[str, Any]:
    """Return what the tower alone takes of what the processor made for the whole model."""
    takes = inspect.signature(module.forward).parameters
    arguments = {name: value for name, value in inputs.items() if name in takes}
    pixels = arguments.get("pixel_values")
    if "noise" in takes:  # ViT-MAE shuffles its patches by it
        arguments["noise"] = torch.arange(grid.patches, device=module.device)[None] / grid.patches
    if pixels is not None and pixels.is_floating_point():
        arguments["pixel_values"] = pixels.to(module.dtype)
    return arguments


def _first_patch(module: Any, grid: TokenGrid, traced: Trace, padded: bool) -> int:
    """Return the number of tokens before the patches: the special ones, unless a protected token is itself a patch."""
    tokens, special = traced.source.shape[1], traced.num_prefix_tokens
    first = special if padded else tokens - grid.patches
    if 0 <= first <= special and tokens - first >= grid.patches:
        return first
    raise ValueError(
        f"{type(module).__name__} has {tokens - special} tokens for {grid.patches} patches, so they have no grid "
        "to be drawn on." + (" Set mask_ratio to 0 in its config." if getattr(module.config, "mask_ratio", 0) else "")
    )


def _view(medium: str, processor: Any, content: Any, inputs: Any, grid: TokenGrid) -> list[Image.Image]:
    if medium == "audio":
        return [spectrogram_view(inputs["input_values"][0])]
    frames = [model_view(content, processor)] if medium == "image" else model_frames(content, processor)[: grid.frames]
    height, width = grid.covers or (frames[0].height, frames[0].width)
    return [frame.crop((0, 0, width, height)) for frame in frames]

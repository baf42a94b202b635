"""Run a model on one image and read where its patches went, for the commands that draw."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel

from ..apply import apply, remove
from ..config import MergeConfig
from ..evaluation.source import is_folder
from ..trace import trace
from ..visualize import model_view

if TYPE_CHECKING:
    from PIL import Image


def load_model(name: str, device: str) -> tuple[PreTrainedModel, Any]:
    """Load a model in the class that it was saved as, and its image processor."""
    is_folder(name, "model")  # a path that is none would be taken for a Hub id
    architectures = AutoConfig.from_pretrained(name).architectures or []
    loader = getattr(transformers, architectures[0], AutoModel) if architectures else AutoModel
    model = loader.from_pretrained(name, dtype="float32").to(device).eval()
    return model, AutoImageProcessor.from_pretrained(name)


def open_image(path: Path) -> Image.Image:
    """Open an image file as RGB.

    Raises:
        ValueError: it cannot be read as an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"Cannot read {path} as an image: {error}") from error


@torch.inference_mode()
def trace_image(
    model: PreTrainedModel, processor: Any, image: Image.Image, config: MergeConfig
) -> tuple[Image.Image, list[torch.Tensor], tuple[int, int]]:
    """Return the image as the model saw it, each patch's token (rows * columns,) after each block, and the grid."""
    inputs = processor(images=image, return_tensors="pt").to(model.device)
    apply(model, dataclasses.replace(config, trace=True))
    try:
        if hasattr(model, "get_image_features"):  # CLIP and its like want text too when called as a whole
            model.get_image_features(**inputs)  # type: ignore[operator]
        else:
            model(**inputs)
        traced = trace(model)
    finally:
        remove(model)
    sources = [source[0, traced.num_special :].cpu() for source in traced.by_block]
    view = model_view(image, processor)
    return view, sources, _grid(len(sources[0]), view)


def _grid(patches: int, view: Image.Image) -> tuple[int, int]:
    """Return rows and columns of square patches that cover the view.

    Raises:
        ValueError: the tokens are not one a patch, as in a video or an audio model.
    """
    rows = round((patches * view.height / view.width) ** 0.5)
    if not rows or patches % rows or abs(view.height / rows - view.width * rows / patches) > 1:
        raise ValueError(
            f"The model has {patches} tokens for a picture of {view.width} x {view.height} pixels, which are not a "
            "grid of square patches; only image models can be shown."
        )
    return rows, patches // rows

"""Load a model and what it is to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoFeatureExtractor, AutoImageProcessor, PreTrainedModel

from ..hub.save_load import load_unmerged
from ..hub.shipped import shipped_model
from ..hub.sources import is_folder, naming
from ..media.audio import read_audio
from ..media.image import read_image
from ..media.limits import DEFAULT_LIMITS, MediaLimits
from ..media.video import frame_count, read_frames
from .traced import input_kind


def load_model(name: str, device: str) -> tuple[PreTrainedModel, Any]:
    """Load a model in the class that it was saved as, and its processor of images or sound.

    Raises:
        UnsupportedModelError: tokens cannot be merged in this model.
    """
    name = shipped_model(name)
    is_folder(name, "model")  # a path that is none would be taken for a Hub id
    model = load_unmerged(name, dtype="float32").to(device).eval()
    return model, find_processor(model, name)


def find_processor(model: PreTrainedModel, source: str) -> Any:
    """Return the processor of images or sound that is saved with a model.

    Raises:
        OSError: there is none; the message names the model.
    """
    processors: Any = AutoFeatureExtractor if input_kind(model) == "audio" else AutoImageProcessor
    with naming(source, "processor of the model"):
        return processors.from_pretrained(source, trust_remote_code=False)


def open_input(path: Path, model: PreTrainedModel, processor: Any, limits: MediaLimits = DEFAULT_LIMITS) -> Any:
    """Read a file as what the model takes: an image, the frames of a clip, or the samples of a recording.

    Raises:
        ValueError: it cannot be read as that.
    """
    takes, read = OPENERS[input_kind(model)]
    try:
        return read(path, model, processor, limits)
    except ValueError as error:
        raise ValueError(f"{error} This model takes {takes}.") from error


OPENERS: dict[str, tuple[str, Callable[[Path, PreTrainedModel, Any, MediaLimits], Any]]] = {
    "image": (
        "images; clips need one such as VideoMAE, recordings one such as AST",
        lambda path, model, processor, limits: read_image(path, limits),
    ),
    "video": (
        "clips; images need one such as ViT, recordings one such as AST",
        lambda path, model, processor, limits: read_frames(path, frame_count(model.config), limits=limits),
    ),
    "audio": (
        "recordings; images need one such as ViT, clips one such as VideoMAE",
        lambda path, model, processor, limits: read_audio(path, processor.sampling_rate, limits),
    ),
}
"""By what a model takes: in words, and how a file is read."""

"""`hf_tome.show`: which patches of an image, a clip or a sound were merged, as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import MergeConfig, format_config
from ..config.text import configs_from, short_name
from ..patching.unwrap import unwrap
from .compare import compare_sheet
from .inputs import find_processor, load_model, open_input
from .predictions import Prediction, predict
from .traced import Traced, trace_input

if TYPE_CHECKING:
    from PIL import Image


def show(
    model: Any,
    media: Any,
    configs: Any = "r=8",
    *,
    processor: Any = None,
    all_blocks: bool = False,
    heatmap: bool = False,
    device: str = "cpu",
) -> Image.Image:
    """Draw which patches of an image, a clip or a sound were merged, and what the model predicts before and after.

    Example:
        hf_tome.show(model, "photo.jpg", [MergeConfig(r=8), MergeConfig(r=16)])

    Args:
        model: a transformers model or a pipeline around one, a folder, a Hub id, or a shipped model such as
            `digits-vit`. A merge that a model object has is left as it was.
        media: a file, a PIL image, the frames of a clip (T, H, W, 3), or the samples of a recording.
        configs: a `MergeConfig` or several; texts such as `"r=8"` too.
        processor (*optional*): of a model object; by default the one saved where the model came from.
        all_blocks: draw the tokens after each block, not just the last.
        heatmap: of an image or a sound, draw how many patches each token holds.
        device: of a model that is loaded here.

    Returns:
        A PIL image, which notebooks display.

    Raises:
        UnsupportedModelError: tokens cannot be merged in this model.
        ValueError: the file cannot be read as what the model takes, or a config does not fit.
        OSError: there is no such model, or no processor with it.
    """
    chosen = configs_from(configs)
    if isinstance(model, (str, os.PathLike)):
        loaded, saved = load_model(os.fspath(model), device)
    else:
        loaded = unwrap(model)
        saved = None if processor is not None else _processor_of(model, loaded)
    used = processor if processor is not None else saved
    used = getattr(used, "image_processor", getattr(used, "feature_extractor", used))
    content = open_input(Path(media), loaded, used) if isinstance(media, (str, os.PathLike)) else media
    traced = [trace_input(loaded, used, content, config) for config in chosen]
    predictions = [predict(loaded, used, content, config) for config in (MergeConfig(), *chosen)]
    return labelled_sheet(traced, chosen, predictions, all_blocks=all_blocks, heat=heatmap)


def labelled_sheet(
    traced: Sequence[Traced], configs: Sequence[MergeConfig], predictions: Sequence[Prediction | None], **options: Any
) -> Image.Image:
    """Draw one input under several configs; the predictions are those of the unmerged model and then of each config.

    Args:
        options: for `compare_sheet`.
    """
    names = [short_name(format_config(config)) for config in configs]
    first, *others = (None if prediction is None else str(prediction) for prediction in predictions)
    return compare_sheet(traced, names, enlarge=2, input_label=_with("input", first), after=others, **options)


def _with(name: str, prediction: str | None) -> str:
    return name if prediction is None else f"{name}: {prediction}"


def _processor_of(model: Any, root: Any) -> Any:
    """Return a pipeline's processor, or the one saved where the model came from."""
    for name in ("image_processor", "feature_extractor"):
        if getattr(model, name, None) is not None:
            return getattr(model, name)
    source = getattr(root.config, "_name_or_path", "")
    if not source:
        raise ValueError(f"This {type(root).__name__} was built in memory; pass its processor as `processor=`.")
    return find_processor(root, source)

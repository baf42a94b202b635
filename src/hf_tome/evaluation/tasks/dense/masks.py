"""Which model segments, and what the numbers in a mask mean to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForInstanceSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedModel,
)

from ....hub.sources import naming
from ...data.labels import find_class_names, match_labels, read_class_names
from ...data.samples import SkipSample
from ...data.splits import DataError
from ...loading import load_task_model
from ...options import JobOptions

CLASSES = (AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation, AutoModelForInstanceSegmentation)
IGNORED = 255
"""What stands in a mask where no class counts, as everywhere in transformers."""
LEFT_OUT = -1


def segmentation_class(options: JobOptions) -> PreTrainedModel:
    """Load a model of the first kind of segmentation that it can be; raises as `load_task_model` does."""
    if options.loaded is not None:
        config: Any = options.loaded.config
    else:
        with naming(options.model, "model"):
            config = AutoConfig.from_pretrained(options.model, trust_remote_code=False)
    auto_class = next((each for each in CLASSES if type(config) in each._model_mapping), CLASSES[0])
    return load_task_model(auto_class, options, "segment images")


def mask_reader(options: JobOptions, id2label: Mapping[int, str], reduced: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from a mask as stored to the model's classes (H, W), -1 where none counts.

    Args:
        options: with the labels file; without one the numbers of a mask are the model's.
        id2label: the model's classes.
        reduced: whether the model counts classes from 1 in a mask, 0 being left out (`do_reduce_labels`).

    Raises:
        ValueError: the labels file does not number its labels, or the model lacks one.
    """
    file = options.labels
    path = Path(options.data).expanduser()
    described = read_class_names(file) if file is not None else find_class_names(path, options.split or "")
    if described is None:
        return lambda mask: _checked(mask, len(id2label), reduced)
    if not described.by_index:
        raise DataError(
            f"{described.path.name} does not number its labels; masks hold numbers, so it needs a column 'index' from "
            "0 on, or a name a line."
        )
    to_model = match_labels(described.by_index, id2label, described)
    table = np.full(IGNORED + 1 + len(described.by_index), LEFT_OUT)
    numbers = [number for number in range(len(described.by_index)) if number != IGNORED]
    table[numbers] = [to_model[described.by_index[number]] for number in numbers]
    return lambda mask: table[_checked(mask, len(described.by_index), False)]


def _checked(mask: np.ndarray, count: int, reduced: bool) -> np.ndarray:
    """Return the classes of a mask (H, W), -1 where none counts.

    Raises:
        SkipSample: it holds a number that is none of so many classes, or nothing that counts.
    """
    if mask.dtype.kind not in "biu":
        raise SkipSample(f"its mask holds numbers of type {mask.dtype}; a mask holds integers")
    values = mask.astype(np.int64)
    classes = np.where(values == IGNORED, LEFT_OUT, values - 1 if reduced else values)
    if classes.max() >= count:
        raise SkipSample(f"its mask holds the number {values[classes >= count][0]}, and there are {count} classes")
    if classes.max() < 0:
        raise SkipSample("its mask has no pixel that counts")
    return np.maximum(classes, LEFT_OUT)

"""What a classifier says of an input, unmerged and merged, for the labels of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..api import merged
from ..config import MergeConfig
from .traced import input_kind, process_input


@dataclass(frozen=True)
class Prediction:
    """The class that a model ranks first, and its probability."""

    label: str
    probability: float

    def __str__(self) -> str:
        return f"{self.label.split(',')[0]} {self.probability:.0%}"


@torch.inference_mode()
def predict(model: PreTrainedModel, processor: Any, content: Any, config: MergeConfig) -> Prediction | None:
    """Return what a classifier ranks first with a merge config; `None` where a model has no classes.

    Args:
        processor, content: as in `trace_input`.
    """
    names: Any = getattr(model.config, "id2label", None)
    if "Classification" not in type(model).__name__ or not names:
        return None
    inputs = process_input(input_kind(model), processor, content).to(model.device)
    tensors = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with merged(model, config):
        logits = model(**tensors).logits[0].float()  # (classes,)
    several = getattr(model.config, "problem_type", None) == "multi_label_classification"
    probability, index = (logits.sigmoid() if several else logits.softmax(dim=-1)).max(dim=-1)
    return Prediction(str(names[int(index)]), float(probability))

"""Models to train: their heads, which weights are trained, LoRA, and the teacher of distillation."""

from __future__ import annotations

import copy
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForVideoClassification

AUTO = {"Image": AutoModelForImageClassification, "Video": AutoModelForVideoClassification}
LORA_TARGETS = ("q_proj", "v_proj", "query", "value")
LORA_RANK = 8


def load_model(name: str, kind: str, names: tuple[str, ...], from_scratch: bool) -> transformers.PreTrainedModel:
    """Return a model with a class for each name: its own head where it has those classes, else a new one."""
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    config.merge_config = None  # of the run that the weights are from; this one merges as it is told
    labels = {"id2label": dict(enumerate(names)), "label2id": {label: index for index, label in enumerate(names)}}
    if from_scratch:
        for key, value in labels.items():
            setattr(config, key, value)
        return AUTO[kind].from_config(config)
    if _tells_apart(config, names):
        return AUTO[kind].from_pretrained(name, config=config, trust_remote_code=False)
    model = AUTO[kind].from_pretrained(name, ignore_mismatched_sizes=True, trust_remote_code=False, **labels)
    model.config.merge_config = None
    return model


def has_classes(name: str, names: tuple[str, ...]) -> bool:
    """Return whether a model's own head tells these classes apart."""
    return _tells_apart(AutoConfig.from_pretrained(name, trust_remote_code=False), names)


def _tells_apart(config: Any, names: tuple[str, ...]) -> bool:
    return [config.id2label.get(index) for index in range(len(config.id2label))] == list(names)


def train_last_block_alone(model: nn.Module) -> None:
    """Freeze all that comes before the last block.

    Raises:
        ValueError: the model has no list of blocks.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of blocks, so it has no last block to train alone.")
    name, blocks = max(lists.items(), key=lambda item: len(item[1]))
    last, reached = f"{name}.{len(blocks) - 1}.", False
    for parameter_name, parameter in model.named_parameters():
        reached = reached or parameter_name.startswith(last)
        parameter.requires_grad_(reached)


def with_lora(model: transformers.PreTrainedModel) -> Any:
    """Return a model beside whose queries and values adapters are trained, and whose head is trained whole.

    Raises:
        ValueError: no such projections are found.
    """
    import peft

    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets = sorted(linear & set(LORA_TARGETS))
    if not targets:
        raise ValueError(
            f"--lora finds none of the projections {', '.join(LORA_TARGETS)} in {type(model).__name__}; the model's "
            f"linear layers are {', '.join(sorted(linear))}."
        )
    config = peft.LoraConfig(r=LORA_RANK, target_modules=targets, modules_to_save=["classifier"])
    return peft.get_peft_model(model, config)


def make_teacher(model: nn.Module) -> nn.Module:
    """Return a copy of an unmerged model that is not trained."""
    return copy.deepcopy(model).eval().requires_grad_(False)

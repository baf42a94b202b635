"""Zero-shot classes: their names, prompt templates, text embeddings, and the scores of images against them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from ...data.files.text_files import read_json, read_text
from ...data.labels import ClassNames, LabelError
from ...job import Inputs

TEMPLATES = ("a photo of a {}.",)
SENTENCES = 256
"""Sentences that go through the text tower at once."""
SIGLIP_LENGTH = 64
"""SigLIP was trained on sentences padded to so many tokens, and reads the last one."""


@dataclass(frozen=True)
class Candidates:
    """The class names that images are matched with, and the index of the name of each label of the data."""

    names: list[str]
    index: Mapping[str, int]


def find_classes(data_labels: Sequence[str], file: Path | None, described: ClassNames | None) -> Candidates:
    """Return what the classes are called: by the file of names, else by the labels file, else by the labels.

    A file of names holds one name a class, a line each or as a JSON list, in the order of the labels file or, without
    one, of the data's labels; or it is a JSON object, label to name. All classes are candidates, in the data or not.

    Raises:
        LabelError: the number of names is not that of the classes, or a label has no name.
    """
    class_names = described.names if described and all(label in described.names for label in data_labels) else None
    labels = list(class_names or data_labels)
    if file is None:
        plain = [(class_names[label] if class_names else label).split(",")[0].replace("_", " ") for label in labels]
        return Candidates(plain, {label: index for index, label in enumerate(labels)})
    names = _read_list(file)
    if isinstance(names, dict):
        missing = [label for label in data_labels if label not in names]
        if missing:
            raise LabelError(f"{file} has no name for the label {missing[0]!r}; it must name all labels of the data.")
        return Candidates(list(names.values()), {label: index for index, label in enumerate(names)})
    if len(names) != len(labels):
        where = described.path.name if class_names and described else "the data"
        raise LabelError(
            f"{file} has {len(names)} names, but {where} has {len(labels)} classes. Give one name a class, in the "
            "same order, or a JSON object from label to name."
        )
    return Candidates(names, {label: index for index, label in enumerate(labels)})


def read_templates(file: Path) -> list[str]:
    """Read prompts with a place `{}` for the name, a line each or as a JSON list.

    Raises:
        LabelError: there is none, or one has no place for the name.
    """
    templates = _read_list(file)
    wrong = [text for text in templates if text.count("{}") != 1]
    if isinstance(templates, dict) or not templates or wrong:
        problem = f"the template {wrong[0]!r}" if wrong else "no list of templates"
        raise LabelError(f"{file} has {problem}; each template needs one {{}} for the name, as in {TEMPLATES[0]!r}.")
    return templates


@torch.inference_mode()
def class_embeddings(
    model: PreTrainedModel, tokenizer: Any, names: Sequence[str], templates: Sequence[str]
) -> torch.Tensor:
    """Return one embedding a class (classes, D), of unit length: the mean over templates of unit embeddings."""
    padding: dict[str, Any] = {"padding": True}
    if "siglip" in model.config.model_type:
        padding = {"padding": "max_length", "max_length": SIGLIP_LENGTH}
    per_batch = max(1, SENTENCES // len(templates))
    embedded = []
    for start in range(0, len(names), per_batch):
        some = names[start : start + per_batch]
        sentences = [template.replace("{}", name) for name in some for template in templates]
        tokens = tokenizer(sentences, truncation=True, return_tensors="pt", **padding).to(model.device)
        features = normalize(_features(model.get_text_features(**tokens)).float(), dim=-1)  # type: ignore[operator]
        embedded.append(features.unflatten(0, (len(some), len(templates))).mean(dim=1))
    return normalize(torch.cat(embedded), dim=-1)


def image_scores(embeddings: torch.Tensor) -> Callable[[PreTrainedModel, Inputs], torch.Tensor]:
    """Return the scores of images: a softmax over the classes, or a sigmoid for models with a bias, such as SigLIP."""

    def scores(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
        images = normalize(_features(model.get_image_features(**inputs)).float(), dim=-1)  # type: ignore[operator]
        logits = model.logit_scale.exp().float() * images @ embeddings.T  # type: ignore[operator]  # (B, classes)
        bias = getattr(model, "logit_bias", None)
        return logits.softmax(dim=-1) if bias is None else (logits + bias.float()).sigmoid()

    return scores


def _features(output: object) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output  # type: ignore[attr-defined]


def _read_list(file: Path) -> list[str] | dict[str, str]:
    """Return the lines of a file, or the texts of a JSON list or object.

    Raises:
        LabelError: it is no UTF-8, or JSON with anything but texts.
        OSError: there is no such file.
    """
    try:
        text = read_text(file)
        if file.suffix != ".json" or not text.lstrip().startswith(("[", "{")):
            return [line for line in text.splitlines() if line.strip()]
        names = read_json(file)
    except ValueError as error:  # of the encoding or of JSON
        raise LabelError(f"{file} cannot be read: {error}.") from error
    values = names.values() if isinstance(names, dict) else names
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong:
        raise LabelError(f"{file} holds {wrong[0]!r}; it takes texts alone, in a list or in an object.")
    return names

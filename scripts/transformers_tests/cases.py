"""transformers' common model tests, one class for each small model of the tests of hf_tome (run by `run.py`).

Where a model has a base model of the same config, such as the `ViTModel` of a `ViTForImageClassification`, both are
tested. `MERGE_TOKENS` says how many tokens each layer merges; without it the models stay as they are.
"""

from __future__ import annotations

import copy
import os
import unittest
from collections.abc import Callable
from typing import Any

import torch
from dense_zoo import DENSE_ZOO
from merged_models import merge_when_built
from tests.test_modeling_common import ModelTesterMixin
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from vlms import VLMS
from zoo import ZOO

import hf_tome

R = os.environ.get("MERGE_TOKENS")


class Tester:
    """What the common tests ask of a model: its config, inputs and sizes."""

    __test__ = False  # pytest goes by the name
    is_training = True
    batch_size, num_masks = 2, 1

    def __init__(self, build: Callable[[], Any], make_inputs: Callable[[Any], dict[str, Any]]):
        torch.manual_seed(0)
        model = build().eval()
        self.inputs = make_inputs(model)
        self.config = without_attention(model.config)
        self.classes = [type(model)]
        base = type(model.base_model)
        if base is not type(model) and base.__name__ == MODEL_MAPPING_NAMES.get(self.config.model_type):
            self.classes.append(base)
        self._read_sizes(model)

    def _read_sizes(self, model: Any) -> None:
        of_images = getattr(self.config, "vision_config", None) or self.config
        for name in ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            setattr(self, name, getattr(of_images, name, None))
        if isinstance(self.image_size, int) and isinstance(self.patch_size, int):
            self.mask_length = (self.image_size // self.patch_size) ** 2
        if "input_ids" in self.inputs:
            self.text_config = self.config.get_text_config()
            self.seq_length = self.inputs["input_ids"].shape[1]
            return
        with torch.no_grad():
            states = model(**self.inputs, output_hidden_states=True).get("hidden_states")
        self.seq_length = states[0].shape[-2] if states else None

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        return copy.deepcopy(self.config), copy.deepcopy(self.inputs)


def without_attention(config: Any) -> Any:
    """Return a config that names no implementation of attention, as one that was just written."""
    config = copy.deepcopy(config)
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None:
            part._attn_implementation_internal = None
    return config


class Case(ModelTesterMixin):
    """The common tests of one model."""

    build: Callable[[], Any]
    make_inputs: Callable[[Any], dict[str, Any]]

    def setUp(self) -> None:
        cls = type(self)
        if cls.model_tester is None:
            cls.model_tester = Tester(cls.build, cls.make_inputs)
            cls.all_model_classes = tuple(cls.model_tester.classes)
            cls.additional_model_inputs = list(cls.model_tester.inputs)
            cls.test_resize_embeddings = "input_ids" in cls.model_tester.inputs
            cls._is_composite = hasattr(cls.model_tester.config, "text_config")
        if R is not None:
            patch = merge_when_built(self.all_model_classes, int(R))
            patch.__enter__()
            self.addCleanup(patch.__exit__, None, None, None)
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        assert hf_tome.is_merged(self.all_model_classes[0](config)) == (R is not None)


def make_case(name: str, build: Callable[[], PreTrainedModel], make_inputs: Callable[[Any], dict[str, Any]]) -> type:
    """Return the class of tests of one model."""
    title = "".join(part.capitalize() for part in name.replace("_", "-").split("-")) + "Test"
    methods = {"build": staticmethod(build), "make_inputs": staticmethod(make_inputs)}
    return type(title, (Case, unittest.TestCase), {**methods, "__module__": __name__})


def all_cases() -> list[type]:
    """Return the classes of tests of the models that `TEST_MODELS` names, by default of all."""
    encoders = [(row.name, row) for row in ZOO] + [(f"dense-{row.name}", row) for row in DENSE_ZOO]
    rows = [(name, lambda row=row: row.build("sdpa"), lambda _, row=row: row.inputs(2)) for name, row in encoders]
    rows += [
        (f"vlm-{vlm.name}", lambda vlm=vlm: vlm.build("sdpa"), lambda model, vlm=vlm: vlm.inputs(model, [[0], [1]]))
        for vlm in VLMS
    ]
    names = {name for name, *_ in rows}
    chosen = set(filter(None, os.environ.get("TEST_MODELS", "").split(","))) or names
    if chosen - names:
        raise ValueError(f"There are no models {sorted(chosen - names)}; there are {', '.join(sorted(names))}.")
    return [make_case(*row) for row in rows if row[0] in chosen]


globals().update({case.__name__: case for case in all_cases()})

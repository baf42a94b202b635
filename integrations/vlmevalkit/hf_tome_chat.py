"""VLMEvalKit's messages as conversations, and its rows of options as LLaVA's questions; this imports no kit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import torch
from PIL import Image

from hf_tome.evaluation.running.runner import to_model
from hf_tome.evaluation.tasks.generation.prompts import Turn, encode

CHOOSE = "Answer with the option's letter from the given choices directly."
"""With which LLaVA-1.5 was trained for options."""


def to_turns(message: Sequence[Mapping[str, str]]) -> list[Turn]:
    """Return the conversation of a message, whose items are `{"type": "image" or "text", "value": path or text}`.

    Raises:
        ValueError: an item is of another type.
    """
    readers = {
        "text": lambda value: {"type": "text", "text": value},
        "image": lambda value: {"type": "image", "image": Image.open(value).convert("RGB")},
    }
    unknown = [item["type"] for item in message if item["type"] not in readers]
    if unknown:
        raise ValueError(f"The message has an item of type {unknown[0]!r}; this model takes image and text.")
    return [{"role": "user", "content": [readers[item["type"]](item["value"]) for item in message]}]


def multiple_choice(row: Mapping[str, Any]) -> str:
    """Return the question of a row with its hint, its options (columns `A`, `B`, ...) and what to do with them."""
    options = [f"{letter}. {row[letter]}" for letter in ascii_uppercase if _given(row.get(letter))]
    hint = [str(row["hint"])] if _given(row.get("hint")) else []
    return "\n".join([*hint, str(row["question"]), *options, CHOOSE if options else "Answer the question directly."])


@torch.inference_mode()
def answer(model: Any, processor: Any, turns: Sequence[Turn], max_new_tokens: int) -> str:
    """Return what the model says in a conversation, greedily."""
    inputs = to_model(encode(processor, [turns]), model)
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


def _given(value: Any) -> bool:
    return value is not None and value == value and value != ""  # a missing value of pandas is not itself

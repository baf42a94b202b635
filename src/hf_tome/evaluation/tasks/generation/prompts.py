"""Prompts with images as model inputs: conversations and texts, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ...data.image_text import Question
from ...data.samples import Sample
from ...data.splits import DataError
from ...job import Inputs

Turn = dict[str, Any]
"""One turn of a conversation as chat templates take it: `{"role": "user", "content": [part, ...]}`, where a part is
`{"type": "image", "image": PIL image}` or `{"type": "text", "text": "..."}`."""


@dataclass(frozen=True)
class Prompts:
    """Makes a batch of model inputs from samples of `Question`s.

    A processor with a chat template gets each prompt as a user's turn, the image before it. Without one, or where the
    prompt holds the processor's image token itself, the prompt is the text that the model reads.
    """

    processor: Any
    image_token_id: int | None

    def __call__(self, samples: Sequence[Sample]) -> Inputs:
        """Return the inputs, one row a sample.

        Raises:
            DataError: a prompt came out without image tokens.
        """
        questions = [sample.content for sample in samples]
        token = getattr(self.processor, "image_token", None)
        if token is not None and any(token in question.prompt for question in questions):
            inputs = encode_texts(
                self.processor,
                [question.prompt for question in questions],
                [[question.image] for question in questions],
            )
        else:
            inputs = encode(self.processor, [_conversation(question) for question in questions])
        self._check(inputs["input_ids"], questions[0].prompt)
        return inputs

    def _check(self, ids: Tensor, prompt: str) -> None:
        if self.image_token_id is not None and not bool((ids == self.image_token_id).any(dim=1).all()):
            raise DataError(
                f"The processor wrote no image token (id {self.image_token_id}) for the prompt {prompt!r}. Its chat "
                "template may take no images; write the image token into --prompt, or give the model's own processor."
            )


def encode(processor: Any, conversations: Sequence[Sequence[Turn]]) -> Inputs:
    """Return the inputs of conversations that the model continues, all with images or all without.

    A processor without a chat template gets their images and texts in their order, a line each.
    """
    if not getattr(processor, "chat_template", None):
        parts = [[part for turn in turns for part in turn["content"]] for turns in conversations]
        token = getattr(processor, "image_token", None) or ""
        texts = ["\n".join(line for part in some if (line := part.get("text", token))) for some in parts]
        return encode_texts(processor, texts, [[part["image"] for part in some if "image" in part] for some in parts])
    return _without_labels(
        processor.apply_chat_template(
            list(conversations),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=_padding(processor),
        )
    )


def encode_texts(processor: Any, texts: Sequence[str], images: Sequence[Sequence[Any]]) -> Inputs:
    """Return the inputs of texts that hold the processor's image token for each image."""
    image_list = list(images) if any(images) else None
    return _without_labels(processor(images=image_list, text=list(texts), return_tensors="pt", **_padding(processor)))


def image_token_id(model: PreTrainedModel) -> int | None:
    """Return the token that stands for image features in a prompt, or `None` for a model without one."""
    names = ("image_token_id", "image_token_index")
    return next((token_id for name in names if (token_id := getattr(model.config, name, None)) is not None), None)


def _padding(processor: Any) -> dict[str, Any]:
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return {"padding": True, "padding_side": "left"}


def _without_labels(inputs: Any) -> Inputs:
    # PaliGemma's processor makes labels of prompts, with which the model would attend as in training.
    return {name: value for name, value in inputs.items() if name != "labels"}


def _conversation(question: Question) -> list[Turn]:
    content = [{"type": "image", "image": question.image}, {"type": "text", "text": question.prompt}]
    return [{"role": "user", "content": content}]

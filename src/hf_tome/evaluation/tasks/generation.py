"""Models that say something about an image: greedy answers, and the image tokens that the language model reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from ...hub.sources import public_name
from ..data.image_text import ImageTexts, OpenedRows, data_name
from ..data.samples import Sample
from ..data.splits import DataError
from ..job import Inputs, Job
from ..loading import load_model
from ..metrics.classification import compute
from ..metrics.text_metrics import SameText
from ..options import JobOptions
from ..store.fingerprint import processor_settings
from ..store.record import Record
from ..store.record_checks import Check, is_index, is_text, list_of
from .generation_prompts import Prompts, image_token_id

CHUNK = 64
"""Samples whose pixels are held in memory at once; an image cut into tiles takes several MB."""


@dataclass(frozen=True)
class GeneratedText:
    """What a model said about one image.

    Attributes:
        ids: the new tokens, up to the end of the text.
        image_tokens: those that the language model read of the image.
    """

    ids: list[int]
    image_tokens: float | None


@dataclass(frozen=True)
class Generator:
    """Greedy generation; what is timed."""

    max_new_tokens: int

    def __call__(self, model: PreTrainedModel, inputs: Inputs) -> list[GeneratedText]:
        """Return what the model says for each row.

        Raises:
            DataError: the prompts' image tokens are not as many as the model's image features.
        """
        ends = _as_list(model.generation_config.eos_token_id)
        pad = model.generation_config.pad_token_id
        with read_by_language_model(model, inputs) as image_tokens:
            try:
                ids = model.generate(  # type: ignore[operator]
                    **inputs,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    pad_token_id=pad if pad is not None else (ends or [0])[0],
                )
            except ValueError as error:
                raise DataError(_explain(error, model, inputs)) from error
        # An encoder-decoder returns its start token and what follows, others the prompt too.
        start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        counts: Sequence[float | None] = image_tokens() or [None] * len(ids)
        return [GeneratedText(_until(row, ends), count) for row, count in zip(ids[:, start:].tolist(), counts)]


@dataclass(frozen=True)
class TextScorer:
    """The outcome of a model that generates text.

    Attributes:
        processor: turns tokens into text.
        score: the records of one variant, and those of the unmerged model, to columns of the results.
    """

    processor: Any
    score: Callable[[Sequence[Record], Sequence[Record]], dict[str, float]]

    def join(self, parts: Sequence[list[GeneratedText]]) -> list[GeneratedText]:
        """Return what was said in the whole batch."""
        return [said for part in parts for said in part]

    def records(self, samples: Sequence[Sample], output: Sequence[GeneratedText]) -> list[Record]:
        """Keep the text, what is right, and how many tokens were read and made."""
        texts = self.processor.batch_decode([said.ids for said in output], skip_special_tokens=True)
        return [
            {
                "text": text.strip(),
                "right": sample.label,
                "new_tokens": len(said.ids),
                **({} if said.image_tokens is None else {"tokens": said.image_tokens}),
            }
            for sample, said, text in zip(samples, output, texts)
        ]

    def fields(self) -> dict[str, Check]:
        """Return the check of each field that `metrics` reads."""
        return {"text": is_text, "new_tokens": is_index, "right": _is_reference}

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return the task's scores, the agreement, and the mean of the tokens made."""
        texts = {"predictions": [one["text"] for one in done], "unmerged": [one["text"] for one in unmerged]}
        return {
            **self.score(done, unmerged),
            **compute((SameText,), texts),
            "new_tokens": sum(one["new_tokens"] for one in done) / len(done),
        }


def _is_reference(value: Any) -> bool:
    """Whether it is captions, or answers with or without options."""
    texts = [value.get("answers"), value.get("choices", [])] if isinstance(value, dict) else [value]
    return all(map(list_of(is_text), texts))


def load_generator(options: JobOptions) -> tuple[PreTrainedModel, Any]:
    """Load a model of images and text and its processor.

    Raises:
        ValueError: the model generates no text from images, or the folder has no processor.
        OSError: there is no such model.
    """
    try:
        model = load_model(AutoModelForImageTextToText, options, "say something about an image")
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"{options.model} says nothing about images; give a model of the task image-text-to-text, such as LLaVA."
        ) from error
    processor = AutoProcessor.from_pretrained(options.model, trust_remote_code=False)
    if not hasattr(processor, "image_processor"):
        raise ValueError(
            f"{options.model} has no processor of images and text, only {type(processor).__name__}. Save the model's "
            "own processor beside it: AutoProcessor.from_pretrained(original).save_pretrained(folder)."
        )
    return model, processor


def from_files(job: Job, data: OpenedRows) -> Job:
    """Return the job of rows that were opened, whose paths have to stay where the data lie."""
    job.data.roots, job.data.left_out = data.opened.roots, data.opened.left_out  # type: ignore[attr-defined]
    return job


def job_arguments(options: JobOptions, data: OpenedRows) -> dict[str, Any]:
    """Return what the options say of a task's job, by the names of its arguments."""
    return {
        "name": public_name(options.model),
        "data_name": data_name(options),
        "split": data.opened.name,
        "image_column": data.column,
        "prompt": options.prompt,
        "max_new_tokens": options.max_new_tokens,
        "media_limits": options.media_limits,
    }


def generation_job(
    task: str,
    name: str,
    model: PreTrainedModel,
    processor: Any,
    samples: ImageTexts,
    score: Callable[[Sequence[Record], Sequence[Record]], dict[str, float]],
    max_new_tokens: int,
    **settings: Any,
) -> Job:
    """Return the job of a task whose model generates text; `settings` go into the results."""
    return Job(
        task,
        name,
        model,
        samples,
        Prompts(processor, image_token_id(model)),
        Generator(max_new_tokens),
        TextScorer(processor, score),
        chunk=CHUNK,
        settings={"max_new_tokens": max_new_tokens, **settings},
        depends_on={
            "processor": processor_settings(processor),
            "chat template": getattr(processor, "chat_template", None),
        },
    )


@contextmanager
def read_by_language_model(model: PreTrainedModel, inputs: Inputs) -> Iterator[Callable[[], list[float]]]:
    """Watch the first call of the language model; yields a function that counts, by row, the image tokens it read.

    They are what the language model gets less the text of the prompt. The function returns an empty list where that
    cannot be told: an encoder-decoder, or a prompt without image tokens.
    """
    seen: list[tuple[int, Tensor | None]] = []

    def watch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        embedded, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        if not seen and embedded is not None:
            seen.append((embedded.shape[1], mask if isinstance(mask, Tensor) and mask.ndim == 2 else None))

    decoder: Any = model.get_decoder()  # type: ignore[operator]
    handle = decoder.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        yield lambda: _image_tokens(model, inputs, *seen[0]) if seen else []
    finally:
        handle.remove()


def _image_tokens(model: PreTrainedModel, inputs: Inputs, length: int, mask: Tensor | None) -> list[float]:
    token = image_token_id(model)
    if token is None or model.config.is_encoder_decoder:
        return []
    ids = inputs["input_ids"]
    given = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    text = (given & (ids != token)).sum(dim=1)
    if mask is None:  # nothing but the width is known: the longest row fills it
        return (length - text.max() + torch.zeros_like(text)).tolist()
    return (mask.bool().sum(dim=1) - text).tolist()


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens up to the first end, with it."""
    return ids[: next((at for at, token in enumerate(ids, start=1) if token in ends), len(ids))]


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _explain(error: ValueError, model: PreTrainedModel, inputs: Inputs) -> str:
    token = image_token_id(model)
    written = (
        "" if token is None else f" The first prompt has {int((inputs['input_ids'][0] == token).sum())} image tokens."
    )
    return (
        f"{type(model).__name__} does not take the processor's inputs: {error}{written} Check that the processor is "
        "the model's own (patch_size, vision_feature_select_strategy, num_additional_image_tokens)."
    )

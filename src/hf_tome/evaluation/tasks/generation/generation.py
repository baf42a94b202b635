"""Greedy generation from images and prompts, and the image tokens that the language model reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from ....hub.sources import public_name
from ....media.limits import DEFAULT_LIMITS, MediaLimits
from ...data.image_text import ImageTexts, OpenedRows, data_name
from ...data.splits import DataError
from ...job import Inputs, Job
from ...loading import load_processor, load_task_model
from ...metrics.texts import GeneratedText, Score, TextScorer
from ...options import JobOptions
from ...store.fingerprint import processor_settings
from .prompts import Prompts, image_token_id


@dataclass(frozen=True)
class Generator:
    """Greedy generation; what is timed."""

    max_new_tokens: int

    @staticmethod
    def logits(model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """Return the logits of the first token to be generated, (B, vocabulary); prompts are padded in front."""
        return model(**inputs).logits[:, -1]

    def __call__(self, model: PreTrainedModel, inputs: Inputs) -> list[GeneratedText]:
        """Return the text generated for each row.

        Raises:
            DataError: the prompts' image tokens are not as many as the model's image features.
        """
        ends = as_list(model.generation_config.eos_token_id)
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
        return [GeneratedText(until(row, ends), count) for row, count in zip(ids[:, start:].tolist(), counts)]


def load_generator(options: JobOptions) -> tuple[PreTrainedModel, Any]:
    """Load a model of images and text and its processor.

    Raises:
        ValueError: the model generates no text from images, or the folder has no processor.
        OSError: there is no such model.
    """
    try:
        model = load_task_model(AutoModelForImageTextToText, options, "generate text about an image")
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"{options.model} generates no text about images; give a model of the task image-text-to-text."
        ) from error
    processor = load_processor(AutoProcessor, options)
    if not hasattr(processor, "image_processor"):
        raise ValueError(
            f"{options.model} has no processor of images and text, only {type(processor).__name__}. Save the model's "
            "own processor beside it: AutoProcessor.from_pretrained(original).save_pretrained(folder)."
        )
    return model, processor


def generation_job(
    task: str,
    model: PreTrainedModel,
    processor: Any,
    rows: Any,
    read_row: Callable[[Mapping[str, Any]], tuple[str, Any]],
    score: Score,
    *,
    max_new_tokens: int,
    settings: Mapping[str, Any],
    name: str = "model",
    data_name: str = "in memory",
    split: str = "test",
    image_column: str = "image",
    media_limits: MediaLimits = DEFAULT_LIMITS,
    **files: Any,
) -> Job:
    """Return the job of a task whose model generates text.

    Args:
        task: its name.
        model: an image-text-to-text model.
        processor: the model's own.
        rows: a data set, or a list of dictionaries with an image and what the task reads.
        read_row: a row's prompt and reference; raises `SkipSample` for what it lacks.
        score: see `TextScorer`.
        max_new_tokens: how many tokens the model may generate.
        settings: more values that the results name, such as the prompt.
        name, data_name, split: what model, data and split are called in the results.
        image_column: the column of images.
        media_limits: sizes beyond which an image is skipped.
        files: `roots` and `left_out` of rows from files (see `Samples`).
    """
    return Job(
        task,
        name,
        model,
        ImageTexts(data_name, split, rows, image_column, read_row, media_limits, **files),
        Prompts(processor, image_token_id(model)),
        Generator(max_new_tokens),
        TextScorer(processor, score),
        settings={"max_new_tokens": max_new_tokens, **settings},
        depends_on={
            "processor": processor_settings(processor),
            "chat template": getattr(processor, "chat_template", None),
        },
    )


def source_arguments(options: JobOptions, data: OpenedRows) -> dict[str, Any]:
    """Return the names of model and data, the prompt and the length that the options give, for a task's job."""
    return {
        "name": public_name(options.model),
        "data_name": data_name(options),
        "split": data.opened.name,
        "image_column": data.column,
        "roots": data.opened.roots,
        "left_out": data.opened.left_out,
        "prompt": options.prompt,
        "max_new_tokens": options.max_new_tokens,
        "media_limits": options.media_limits,
    }


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


def until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens up to the first end, with it."""
    return ids[: next((at for at, token in enumerate(ids, start=1) if token in ends), len(ids))]


def as_list(value: int | Sequence[int] | None) -> list[int]:
    """Return one id, several or none as a list."""
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

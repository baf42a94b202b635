"""The task `visual-question-answering`: questions about images, with free answers or options; see `questions`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ...data.image_text import data_name, open_rows
from ...job import Job
from ...metrics.texts import score_answers
from ...options import JobOptions
from ..task import GENERATED_WORDS, GENERATING, Task
from .generation import generation_job, load_generator, source_arguments
from .questions import check_columns, prompt_settings, question_reader

MAX_NEW_TOKENS = 16


def visual_question_answering(options: JobOptions) -> Job:
    """Load a model and the images and questions that it is to answer.

    Raises:
        ValueError: the data cannot be opened or hold no questions or answers, the prompt has no place for the
            question, or the model generates no text from images.
        OSError: there is no such model.
    """
    data = open_rows(options)
    check_columns(data.columns, data_name(options))
    prompt_settings(options.prompt)  # before the model is loaded
    model, processor = load_generator(options)
    return vqa_job(model, processor, data.opened.rows, **source_arguments(options, data))


def vqa_job(
    model: PreTrainedModel,
    processor: Any,
    rows: Any,
    *,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    **source: Any,
) -> Job:
    """Return the job of answering questions about images.

    Args:
        model, processor, rows, source: see `generation_job`.
        prompt (`str`, *optional*): a text with a place `{question}`, where the options follow the question.
        max_new_tokens (`int`, *optional*): how many tokens the model may generate.
    """
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens or MAX_NEW_TOKENS, "settings": prompt_settings(prompt)}
    return generation_job(TASK.name, model, processor, rows, question_reader(prompt), score_answers, **how, **source)


_WORDS = {**GENERATED_WORDS, "unit": "questions"}
TASK = Task("visual-question-answering", visual_question_answering, GENERATING, _WORDS)

"""The task `visual-question-answering`: questions about images, with free answers or options to choose from.

A sample has an image, a question, the right answer and, for multiple choice, the options. In a JSON or JSONL file
beside the images (in a CSV several answers or options stand with semicolons between; see `generation_data`):

    {"image": "7.png", "question": "Which digit is this?", "answer": "7"}
    {"image": "dog.jpg", "question": "What is it?", "answers": ["dog", "a puppy", "dog"]}
    {"image": "dog.jpg", "question": "What is it?", "choices": ["cat", "dog"], "answer": "B"}

A data set has the same columns, or others of the names below; options can also be columns `A`, `B`, ... In memory,
`vqa_job` takes a list of such dictionaries whose `image` is a PIL image.

A free answer is right if it is one of the right ones as VQA compares them (`text_metrics.normal_answer`). Of options
the model is shown letters, and what it says is read (`choices.read_choice`): a letter (`B`, `(b)`, `B. dog`, `The
answer is B`) or one option word for word; anything else is wrong. That needs no likelihoods, which differ between
tokenizers, and scores what a user would read; `answered` says how often a choice could be read at all. The answer in
the data is the option's index from 0 where it is a number, and where it is a text (always in a CSV) the option's text,
its letter or its index, in this order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase as LETTERS
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ...media.limits import DEFAULT_LIMITS, MediaLimits
from ..data.image_text import ImageTexts, as_values, data_name, find_column, first_texts, first_values, open_rows
from ..data.samples import SkipSample
from ..data.splits import DataError
from ..job import Job
from ..metrics.choices import read_choice, right_letter
from ..metrics.classification import PairedDrop, compute, percent
from ..metrics.text_metrics import AnswerAccuracy, hits
from ..options import JobOptions
from ..store.record import Record
from .generation import from_files, generation_job, job_arguments, load_generator

TASK = "visual-question-answering"
PLACE = "{question}"
PROMPT = "{question}\nAnswer the question using a single word or phrase."
CHOICE_PROMPT = "{question}\nAnswer with the option's letter from the given choices directly."
"""With which LLaVA-1.5 was trained for short answers and for options."""
MAX_NEW_TOKENS = 16
QUESTION_COLUMNS = ("question", "query")
ANSWER_COLUMNS = ("answers", "answer", "multiple_choice_answer", "label")
CHOICE_COLUMNS = ("choices", "options")


def visual_question_answering(options: JobOptions) -> Job:
    """Load a model and the images and questions that it is to answer.

    Raises:
        ValueError: the data cannot be opened or hold no questions or answers, the prompt has no place for the
            question, or the model generates no text from images.
        OSError: there is no such model.
    """
    data = open_rows(options)
    source = data_name(options)
    find_column(data.columns, QUESTION_COLUMNS, "questions", source)
    find_column(data.columns, ANSWER_COLUMNS, "answers", source)
    _templates(options.prompt)  # before the model is loaded
    model, processor = load_generator(options)
    job = vqa_job(model, processor, data.opened.rows, **job_arguments(options, data))
    return from_files(job, data)


def vqa_job(
    model: PreTrainedModel,
    processor: Any,
    rows: Any,
    *,
    name: str = "model",
    data_name: str = "in memory",
    split: str = "test",
    image_column: str = "image",
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    media_limits: MediaLimits = DEFAULT_LIMITS,
) -> Job:
    """Return the job of answering questions about images.

    Args:
        model: an image-text-to-text model.
        processor: the model's own.
        rows: a data set, or a list of dictionaries with an image, a question, one answer or more, and maybe options.
        name, data_name, split: what they are called in the results.
        image_column: where a row holds its image; questions, answers and options are found by their names.
        prompt (`str`, *optional*): a text with a place `{question}`, where the options follow the question.
        max_new_tokens (`int`, *optional*): how much the model may say.
        media_limits: sizes beyond which an image is skipped.

    Raises:
        DataError: the prompt has no place for the question.
    """
    free, choice = _templates(prompt)

    def read_row(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        question, answers = first_texts(row, QUESTION_COLUMNS), first_values(row, ANSWER_COLUMNS, "answer")
        if not question:
            raise SkipSample("it has no question")
        if not answers:
            raise SkipSample("it has no answer")
        choices = _choices(row)
        if not choices:
            return free.replace(PLACE, question[0]), {"answers": [str(answer) for answer in answers]}
        right = {"answers": [right_letter(answers[0], choices)], "choices": [str(choice) for choice in choices]}
        listed = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices)]
        return choice.replace(PLACE, "\n".join([question[0], *listed])), right

    samples = ImageTexts(data_name, split, rows, image_column, read_row, media_limits)
    asked = {"prompt": prompt} if prompt else {"prompt": PROMPT, "choice_prompt": CHOICE_PROMPT}
    return generation_job(
        TASK, name, model, processor, samples, score_answers, max_new_tokens or MAX_NEW_TOKENS, **asked
    )


def score_answers(done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
    """Return the accuracy, the points lost with their interval, and how often a choice could be read."""
    said, right = [_answer(one) for one in done], [one["right"]["answers"] for one in done]
    values = compute((AnswerAccuracy,), {"predictions": said, "references": right})
    before = hits([_answer(one) for one in unmerged], right)
    values |= compute(
        (PairedDrop,),
        {
            "predictions": [[int(hit)] for hit in hits(said, right)],
            "unmerged": [[int(hit)] for hit in before],
            "references": [1] * len(done),
        },
    )
    of_choices = [bool(text) for text, one in zip(said, done) if "choices" in one["right"]]
    return {**values, "answered": percent(np.array(of_choices))} if of_choices else values


def _answer(record: Record) -> str:
    choices = record["right"].get("choices")
    return record["text"] if choices is None else read_choice(record["text"], choices)


def _templates(prompt: str | None) -> tuple[str, str]:
    """Return the prompts for free answers and for options."""
    if prompt is not None and PLACE not in prompt:
        raise DataError(f"The prompt {prompt!r} has no place for the question: write {PLACE} into it.")
    return prompt or PROMPT, prompt or CHOICE_PROMPT


def _choices(row: Mapping[str, Any]) -> list[Any]:
    choices = first_values(row, CHOICE_COLUMNS) or [one for letter in LETTERS for one in as_values(row.get(letter))]
    if len(choices) == 1 or len(choices) > len(LETTERS):
        raise SkipSample(f"it has {len(choices)} options to choose from; 2 to {len(LETTERS)} are possible")
    return choices

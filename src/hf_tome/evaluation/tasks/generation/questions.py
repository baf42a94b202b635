"""Rows of data as questions about images, with free answers or options to choose from.

A sample has an image, a question, the right answer and, for multiple choice, the options. In a JSON or JSONL file
beside the images (in a CSV several answers or options are separated by semicolons; see `data.image_text`):

    {"image": "7.png", "question": "Which digit is this?", "answer": "7"}
    {"image": "dog.jpg", "question": "What is it?", "answers": ["dog", "a puppy", "dog"]}
    {"image": "dog.jpg", "question": "What is it?", "choices": ["cat", "dog"], "answer": "B"}

A data set has the same columns, or others of the names below; options can also be columns `A`, `B`, ... In memory,
rows are a list of such dictionaries whose `image` is a PIL image.

A free answer is right if it is one of the right ones as VQA compares them (`text_metrics.normal_answer`). Of options
the model is shown letters, and its text is read (`choices.read_choice`): a letter (`B`, `(b)`, `B. dog`, `The answer
is B`) or one option word for word; anything else is wrong. That needs no likelihoods, which differ between
tokenizers, and scores what a user would read; `answered` counts how often a choice could be read. The answer in the
data is the option's index from 0 where it is a number, and where it is a text (always in a CSV) the option's text, its
letter or its index, in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase as LETTERS
from typing import Any

from ...data.image_text import as_values, find_column, first_texts, first_values
from ...data.samples import SkipSample
from ...data.split_names import DataError
from ...metrics.choices import right_letter

PLACE = "{question}"
PROMPT = "{question}\nAnswer the question using a single word or phrase."
CHOICE_PROMPT = "{question}\nAnswer with the option's letter from the given choices directly."
"""With which LLaVA-1.5 was trained for short answers and for options."""
QUESTION_COLUMNS = ("question", "query")
ANSWER_COLUMNS = ("answers", "answer", "multiple_choice_answer", "label")
CHOICE_COLUMNS = ("choices", "options")


def check_columns(columns: Sequence[str], source: str) -> None:
    """Raise `DataError` unless there are columns of questions and of answers."""
    find_column(columns, QUESTION_COLUMNS, "questions", source)
    find_column(columns, ANSWER_COLUMNS, "answers", source)


def prompt_settings(prompt: str | None) -> dict[str, str]:
    """Return the prompts as the results name them.

    Raises:
        DataError: the prompt has no place for the question.
    """
    if prompt is None:
        return {"prompt": PROMPT, "choice_prompt": CHOICE_PROMPT}
    if PLACE not in prompt:
        raise DataError(f"The prompt {prompt!r} has no place for the question: write {PLACE} into it.")
    return {"prompt": prompt}


def question_reader(prompt: str | None) -> Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]:
    """Return the function that turns a row into a prompt and its reference: the right answers, and maybe the options.

    The options follow the question, a line each. The function raises `SkipSample` for what a row lacks.
    """
    settings = prompt_settings(prompt)
    free, choice = settings["prompt"], settings.get("choice_prompt", settings["prompt"])

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
        listed = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices)]
        return choice.replace(PLACE, "\n".join([question[0], *listed])), right

    return read_row


def _choices(row: Mapping[str, Any]) -> list[Any]:
    lettered = [value for letter in LETTERS for value in as_values(row.get(letter))]
    choices = first_values(row, CHOICE_COLUMNS) or lettered
    if len(choices) == 1 or len(choices) > len(LETTERS):
        raise SkipSample(f"it has {len(choices)} options to choose from; 2 to {len(LETTERS)} are possible")
    return choices

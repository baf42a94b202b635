"""Needles: sentences hidden in a context that tell a number, which is asked for behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

CITIES = ("Lisbon", "Oslo", "Cairo")
NUM_DIGITS = 5
PLACES = (0.2, 0.5, 0.8)
"""Where the needles stand, as shares of the context without them."""

Encode = Callable[[str], list[int]]
"""A text to token ids, without special tokens."""


@dataclass(frozen=True)
class Question:
    """What asks for a number: the token ids of a question and its answer, the last `num_answer` of them the answer."""

    ids: list[int]
    num_answer: int


@dataclass(frozen=True)
class Haystack:
    """A context with needles in it.

    Attributes:
        context: token ids.
        following: the token ids that follow in the text that the needles are hidden in.
        questions: one a needle.
    """

    context: list[int]
    following: list[int]
    questions: list[Question]


def hide_needles(
    ids: Sequence[int],
    encode: Encode,
    num_tokens: int,
    num_next: int,
    seed: int,
    num_leading: int = 0,
    cities: Sequence[str] = CITIES,
) -> Haystack:
    """Hide a needle for each city in the beginning of a text, so that it has `num_tokens` together with them.

    Args:
        ids: the text, at least `num_tokens + num_next` long.
        num_next: tokens of the text that follow the context.
        seed: draws the numbers.
        num_leading: special tokens at the beginning, which stay there.

    Raises:
        ValueError: the needles are longer than the context.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = ["".join(map(str, torch.randint(10, (NUM_DIGITS,), generator=generator).tolist())) for _ in cities]
    needles = [encode(f" The secret number of {city} is {number}. ") for city, number in zip(cities, numbers)]
    room = num_tokens - sum(map(len, needles))
    if room <= num_leading:
        raise ValueError(
            f"A context of {num_tokens} tokens has no room for {len(needles)} needles, which take {num_tokens - room}."
        )
    context, begin = list(ids[:num_leading]), num_leading
    for place, needle in zip(PLACES, needles):
        end = max(int(place * room), begin)
        context += [*ids[begin:end], *needle]
        begin = end
    questions = [_question(encode, city, number) for city, number in zip(cities, numbers)]
    return Haystack([*context, *ids[begin:room]], list(ids[room : room + num_next]), questions)


def _question(encode: Encode, city: str, number: str) -> Question:
    asked = encode(f"\n The secret number of {city} is")
    whole = encode(f"\n The secret number of {city} is {number}")
    # A blank before the number may be a token of its own, which tells nothing.
    return Question(whole, len(whole) - len(asked) - (len(encode(f" {number}")) > len(encode(number))))

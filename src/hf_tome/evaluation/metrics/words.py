"""Word errors of transcripts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..store.record import Record
from .bootstrap import ratio_drop


def edit_distance(first: Sequence[str], other: Sequence[str]) -> int:
    """Return the fewest words to replace, insert or delete that turn one sequence into the other."""
    row = list(range(len(other) + 1))
    for count, word in enumerate(first, start=1):
        before, row[0] = row[0], count
        for at, expected in enumerate(other, start=1):
            before, row[at] = row[at], min(before + (word != expected), row[at] + 1, row[at - 1] + 1)
    return row[-1]


def normal_words(text: str) -> list[str]:
    """Return a text's words in lower case without punctuation, as Whisper's basic normaliser leaves them."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer()(text).split()


def word_errors(records: Sequence[Record]) -> np.ndarray:
    """Return the errors and the words of the reference of each record (samples, 2)."""
    pairs = [(normal_words(record["right"][0]), normal_words(record["text"])) for record in records]
    return np.array([(edit_distance(right, words), len(right)) for right, words in pairs], dtype=float)


def word_accuracy(sums: np.ndarray) -> np.ndarray:
    """Return 100 less the word error rate in percent, of sums of errors and words (resamples, 2)."""
    return 100 - 100 * sums[:, 0] / np.maximum(sums[:, 1], 1)


def score_words(done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
    """Return the word error rate, the word accuracy, and the points that are lost with their interval."""
    errors, before = word_errors(done), word_errors(unmerged)
    accuracy = float(word_accuracy(errors.sum(axis=0)[None])[0])
    return {"word_accuracy": accuracy, "wer": 100 - accuracy, **ratio_drop(errors, before, word_accuracy)}

"""Generated text as records, and records as the scores of captions and answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.samples import Sample
from ..store.record import Record
from ..store.record_checks import Check, is_index, is_text, list_of
from .bootstrap import mean_drop
from .choices import read_choice
from .classification import PairedDrop, compute, percent
from .text_metrics import AnswerAccuracy, CaptionScores, SameText, cider_scores, hits

Score = Callable[[Sequence[Record], Sequence[Record]], dict[str, float]]
"""The records of one variant and those of the unmerged model, to columns of the results."""


@dataclass(frozen=True)
class GeneratedText:
    """The text generated for one image.

    Attributes:
        ids: the new tokens, up to the end of the text.
        image_tokens: the image tokens that the language model read.
    """

    ids: list[int]
    image_tokens: float | None


@dataclass(frozen=True)
class TextScorer:
    """Scores of a model that generates text.

    Attributes:
        processor: turns tokens into text.
        score: the records of one variant, and those of the unmerged model, to columns of the results.
    """

    processor: Any
    score: Score

    def join(self, parts: Sequence[list[GeneratedText]]) -> list[GeneratedText]:
        """Return the texts of the whole batch."""
        return [generated for part in parts for generated in part]

    def records(self, samples: Sequence[Sample], output: Sequence[GeneratedText]) -> list[Record]:
        """Keep the text, the reference, and the numbers of tokens read and generated."""
        texts = self.processor.batch_decode([generated.ids for generated in output], skip_special_tokens=True)
        return [
            {
                "text": text.strip(),
                "right": sample.label,
                "new_tokens": len(generated.ids),
                **({} if generated.image_tokens is None else {"tokens": generated.image_tokens}),
            }
            for sample, generated, text in zip(samples, output, texts)
        ]

    def fields(self) -> dict[str, Check]:
        """Return the check of each field that `metrics` reads."""
        return {"text": is_text, "new_tokens": is_index, "right": _is_reference}

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return the task's scores, the agreement, and the mean number of generated tokens."""
        texts = {
            "predictions": [record["text"] for record in done],
            "unmerged": [record["text"] for record in unmerged],
        }
        return {
            **self.score(done, unmerged),
            **compute((SameText,), texts),
            "new_tokens": sum(record["new_tokens"] for record in done) / len(done),
        }


def _is_reference(value: Any) -> bool:
    """Whether it is captions, or answers with or without options."""
    texts = [value.get("answers"), value.get("choices", [])] if isinstance(value, dict) else [value]
    return all(map(list_of(is_text), texts))


def score_captions(done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
    """Return BLEU, ROUGE-L, CIDEr-D, and the points of CIDEr-D lost with their interval."""
    texts, references = [record["text"] for record in done], [record["right"] for record in done]
    before = [record["text"] for record in unmerged]
    values = compute((CaptionScores,), {"predictions": texts, "references": references})
    return values | mean_drop(cider_scores(texts, references), cider_scores(before, references))


def score_answers(done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
    """Return the accuracy, the points lost with their interval, and how often a choice could be read."""
    answers, references = [_answer(record) for record in done], [record["right"]["answers"] for record in done]
    values = compute((AnswerAccuracy,), {"predictions": answers, "references": references})
    before = hits([_answer(record) for record in unmerged], references)
    values |= compute(
        (PairedDrop,),
        {
            "predictions": [[int(hit)] for hit in hits(answers, references)],
            "unmerged": [[int(hit)] for hit in before],
            "references": [1] * len(done),
        },
    )
    chosen = [bool(answer) for answer, record in zip(answers, done) if "choices" in record["right"]]
    return {**values, "answered": percent(np.array(chosen))} if chosen else values


def _answer(record: Record) -> str:
    choices = record["right"].get("choices")
    return record["text"] if choices is None else read_choice(record["text"], choices)

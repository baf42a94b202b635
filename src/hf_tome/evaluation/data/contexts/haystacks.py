"""Samples of text to contexts with needles in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..samples import Sample
from .needles import Haystack, Question, hide_needles


@dataclass(frozen=True)
class Haystacks:
    """How samples, token ids of texts, become contexts.

    Attributes:
        tokenizer: of the model that reads them.
        num_context: tokens of a context, needles included.
        num_next: tokens of the text that follow it.
    """

    tokenizer: Any
    num_context: int
    num_next: int

    def rows(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return contexts and what follows them as `input_ids` (B, num_context + num_next)."""
        haystacks = [self._hide(sample) for sample in samples]
        return {"input_ids": torch.tensor([[*haystack.context, *haystack.following] for haystack in haystacks])}

    def questions(self, sample: Sample) -> list[Question]:
        """Return the questions for the needles of a sample."""
        return self._hide(sample).questions

    def _hide(self, sample: Sample) -> Haystack:
        ids = sample.content
        num_leading = int(ids[0] in self.tokenizer.all_special_ids)
        return hide_needles(ids, self._encode, self.num_context, self.num_next, sample.position, num_leading)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

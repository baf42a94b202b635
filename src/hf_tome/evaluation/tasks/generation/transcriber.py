"""Greedy transcription; what is timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...job import Inputs
from ...metrics.texts import GeneratedText
from .generation import as_list, until


@dataclass(frozen=True)
class Transcriber:
    """Greedy generation from features."""

    max_new_tokens: int

    @staticmethod
    def logits(model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """Return the logits of the first token to be written, (B, vocabulary)."""
        features = next(iter(inputs.values()))
        start = torch.full((len(features), 1), model.config.decoder_start_token_id, device=features.device)
        return model(**inputs, decoder_input_ids=start).logits[:, -1]

    def __call__(self, model: PreTrainedModel, inputs: Inputs) -> list[GeneratedText]:
        """Return the text written for each row."""
        ids = model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1
        )
        ends = as_list(model.generation_config.eos_token_id)
        return [GeneratedText(until(row, ends), None) for row in ids.tolist()]

"""What generation shows of a shortened prompt: the prompt as it was passed, in sequences, streamers and criteria."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput


@dataclass(frozen=True)
class Prompt:
    """Prompts as they were passed, (B, L), and `length`, how many columns of them the model works with."""

    ids: Tensor
    length: int

    def full(self, ids: Tensor) -> Tensor:
        """Put the prompts as passed before what follows them: (B * k, length + n) -> (B * k, L + n)."""
        prompts = self.ids.to(ids.device).repeat_interleave(ids.shape[0] // self.ids.shape[0], dim=0)
        return torch.cat([prompts, ids[:, self.length :]], dim=1)

    def full_row(self, row: int, ids: Tensor) -> Tensor:
        """Do the same for the continuation (length + n,) of one prompt."""
        return torch.cat([self.ids[row].to(ids.device), ids[self.length :]])

    def restore(self, out: Any) -> Any:
        """Do the same in what `generate` returned, sequences or an output that holds them."""
        if isinstance(out, Tensor):
            return self.full(out)
        if isinstance(out, ModelOutput):
            out["sequences"] = self.full(out["sequences"])
        return out


def show_prompt(call: dict[str, Any], prompt: Prompt) -> None:
    """Let whatever the caller passed to `generate` see the prompt as it was passed; changes `call` in place."""
    for name, wrap in WRAPPED.items():
        if call.get(name) is not None:
            call[name] = wrap(call[name], prompt)


class _Streamer(BaseStreamer):
    """Hands the caller's streamer the prompt as passed, then the rest as it comes."""

    def __init__(self, streamer: Any, prompt: Prompt):
        self.streamer, self.prompt, self.begun = streamer, prompt, False

    def put(self, value: Tensor) -> None:
        self.streamer.put(value if self.begun else self.prompt.full(value))
        self.begun = True

    def end(self) -> None:
        self.streamer.end()


def _processors(processors: list[Any], prompt: Prompt) -> LogitsProcessorList:
    return LogitsProcessorList([_seeing(processor, prompt) for processor in processors])


def _criteria(criteria: list[Any], prompt: Prompt) -> StoppingCriteriaList:
    return StoppingCriteriaList([_seeing(criterion, prompt) for criterion in criteria])


def _seeing(function: Callable[..., Any], prompt: Prompt) -> Callable[..., Any]:
    def call(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return function(prompt.full(input_ids), *args, **kwargs)

    return call


def _prefix_function(function: Callable[[int, Tensor], Any], prompt: Prompt) -> Callable[[int, Tensor], Any]:
    return lambda row, ids: function(row, prompt.full_row(row, ids))


WRAPPED: Mapping[str, Callable[[Any, Prompt], Any]] = {
    "streamer": _Streamer,
    "logits_processor": _processors,
    "stopping_criteria": _criteria,
    "prefix_allowed_tokens_fn": _prefix_function,
}
"""The caller's objects that look at the sequences so far."""

"""`generate` on shortened prompts, whose caller sees the prompts as they were passed."""

from __future__ import annotations

from typing import Any

import torch

from ...cache_names import cache_of
from ..call_args import arguments, cache_argument, first, has_images, inferred_mask, pad_token_id
from ..vlm import MergedModel
from .cache import check_unmarked, continue_generate, remember, remembered, without_history
from .prompt import Shortening
from .visible_prompt import Prompt, show_prompt


class MergedGenerator(MergedModel):
    """A model with its language modelling head (`LlavaForConditionalGeneration`)."""

    methods = ("forward", "generate")

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate from shortened prompts; what comes back begins with the prompts as they were passed."""
        plain = super().generate
        call = arguments(plain, args, kwargs)
        cache = cache_argument(call)
        history = remembered(cache)
        if call.get("inputs") is not None:
            call["input_ids"] = call.pop("inputs")
        ids = call.get("input_ids")
        if history is None and not (self._merges and has_images(call)):
            if self._merges and cache is not None and ids is not None:
                check_unmarked(cache, self._placeholders(ids, None))
            return plain(*args, **kwargs)
        length = (call["inputs_embeds"] if ids is None else ids).shape[1]
        if call.get("attention_mask") is None:
            call["attention_mask"] = inferred_mask(self, ids, call)
        shortening: Shortening | None
        if history is not None:
            given = self._placeholders(ids, call.get("inputs_embeds"))
            positions = call.get("position_ids")
            shortening = continue_generate(call, history, given, has_images(call), pad_token_id(self, call))
            if self._connector.mrope and positions is None:
                call.pop("position_ids", None)  # the model counts them itself, from where its text continues
        else:
            shortening = self._shorten(call, True)
        if shortening is None:
            return plain(**call)
        tokens = "inputs_embeds" if ids is None else "input_ids"
        self._adjust_lengths(call, length - call[tokens].shape[1])
        prompt = None if ids is None else Prompt(ids, call["input_ids"].shape[1])
        if prompt is not None:  # embeddings never come back
            show_prompt(call, prompt)
        with without_history(cache):
            out = plain(**call)
        made = cache_of(out)
        remember(cache if made is None else made, shortening)
        return out if prompt is None else prompt.restore(out)

    def _adjust_lengths(self, call: dict[str, Any], lost: int) -> None:
        """Count limits that include the prompt (`max_length`, `min_length`) from the shortened one."""
        sources = (call, call.get("generation_config"), self.generation_config)
        for limit, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if first(sources, limit) and not first(sources, instead):
                call[limit] = max(first(sources, limit) - lost, 0)

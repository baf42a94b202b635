"""Read a long context once, merge its cache, and ask many questions about it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from .adapters.cache_names import cache_keyword, cache_of
from .api import apply, is_merged, remove
from .config import MergeConfig

MARK = "\x00question\x00"
"""Stands for the question in a chat template, and is in no text."""


class ContextPipeline:
    """Answers questions about contexts, each of which is read once and kept as a merged cache.

    Args:
        model: a causal language model whose cache can merge.
        tokenizer: the model's own; its chat template is used where it has one.
        config (`MergeConfig`, *optional*): with `where="cache"`; by default half of the entries stay, with sizes
            fitted to the context's queries.

    Raises:
        UnsupportedModelError, ValueError: as in `hf_tome.apply`; found at once.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, config: MergeConfig | None = None):
        self.model, self.tokenizer = model, tokenizer
        self.config = MergeConfig(where="cache", keep_ratio=0.5, size="fitted") if config is None else config
        if self.config.where != "cache":
            raise ValueError(f"`config` has where={self.config.where!r}; contexts are kept in a cache: where='cache'.")
        if is_merged(model):
            raise ValueError("Tokens merge in this model already; call `hf_tome.remove(model)` first.")
        remove(apply(model, self.config))

    def __call__(self, context: str, questions: Sequence[str], max_new_tokens: int = 50, **generate: Any) -> list[str]:
        """Return one answer a question; `generate` takes what the model's `generate` does.

        Raises:
            TypeError: the questions are one text.
        """
        if isinstance(questions, str):
            raise TypeError(f"`questions` is one text; it takes a list, as in [{questions[:40]!r}].")
        before, after = self._around(context)
        ids = self._tokens(before, add_special_tokens=not getattr(self.tokenizer, "chat_template", None))
        apply(self.model, self.config)
        try:
            with torch.inference_mode():
                output = self.model(ids, use_cache=True, logits_to_keep=1)
                cache = cache_of(output)
                asked = (self._tokens(question + after, add_special_tokens=False) for question in questions)
                return [self._answer(ids, more, copy.deepcopy(cache), max_new_tokens, generate) for more in asked]
        finally:
            remove(self.model)

    def _around(self, context: str) -> tuple[str, str]:
        """Return the text up to the question, and what follows it."""
        if not getattr(self.tokenizer, "chat_template", None):
            return context, "\n"
        messages = [{"role": "user", "content": f"{context}\n\n{MARK}"}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before, _, after = text.partition(MARK)
        return before, after

    def _tokens(self, text: str, add_special_tokens: bool) -> torch.Tensor:
        encoding = self.tokenizer(text, return_tensors="pt", add_special_tokens=add_special_tokens)
        return encoding.input_ids.to(self.model.device)

    def _answer(
        self, ids: torch.Tensor, asked: torch.Tensor, cache: Any, max_new_tokens: int, more: dict[str, Any]
    ) -> str:
        whole = torch.cat([ids, asked], dim=1)
        arguments = {"attention_mask": torch.ones_like(whole), "max_new_tokens": max_new_tokens, "do_sample": False}
        output = self.model.generate(whole, **{**arguments, **more, cache_keyword(self.model): cache})  # type: ignore[operator]
        return self.tokenizer.decode(output[0, whole.shape[1] :], skip_special_tokens=True).strip()

"""Any image-text-to-text model of transformers, with token merging, as a chat model of lmms-eval."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

import hf_tome
from hf_tome.config import parse_config
from hf_tome.evaluation.running.runner import to_model
from hf_tome.evaluation.tasks.generation.prompts import encode

MAX_NEW_TOKENS = 1024
GENERATION = ("max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")
"""What a task's `generation_kwargs` may say; `until` is dealt with here."""


class HfTome(lmms):
    """A model whose image tokens are merged.

    Args:
        pretrained: Hub id or folder of the model and its processor.
        merge: a merge config as `hf-tome eval --config` takes it, with semicolons for commas (`r=8`,
            `method=mame;threshold=0.9`), or the path of a `merge_config.json`; empty for the unmerged model.
        batch_size: prompts in a batch.
        device, dtype, attn_implementation, revision: how the model is loaded.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "llava-hf/llava-1.5-7b-hf",
        merge: str = "",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        revision: str = "main",
        max_batch_size: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise ValueError(f"Unknown --model_args {', '.join(unknown)}; see the docstring of {type(self).__name__}.")
        config = parse_config(merge.replace(";", ",")) if merge else None  # before anything heavy is loaded
        self._device = self._join_processes(device)
        self.model = AutoModelForImageTextToText.from_pretrained(
            pretrained,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=False,
        )
        self.model.to(self._device).eval()
        self.processor = AutoProcessor.from_pretrained(pretrained, revision=revision, trust_remote_code=False)
        if config is not None:
            hf_tome.apply(self.model, config)
        self.batch_size = int(batch_size)

    def _join_processes(self, device: str | None) -> torch.device:
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1 or device is None:
            return self.accelerator.device
        return torch.device(device)

    @property
    def device(self) -> torch.device:
        """Where the model runs; lmms-eval gathers results of several processes there."""
        return self._device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer the requests in batches of alike settings, all with images or all without, as processors ask."""
        results: dict[int, GenerationResult] = {}
        seconds = 0.0
        with tqdm(total=len(requests), desc="Model Responding", disable=self._rank != 0) as bar:
            for batch in self._batches(requests):
                started = time.perf_counter()
                answers = self._answer([turns for _, turns, _ in batch], batch[0][2])
                seconds += time.perf_counter() - started
                for (index, _, settings), (text, count) in zip(batch, answers):
                    results[index] = GenerationResult(text=text, token_counts=TokenCounts(output_tokens=count))
                    self.cache_hook.add_partial("generate_until", (requests[index].args[0], settings), text)
                bar.update(len(batch))
        made = sum(result.token_counts.output_tokens for result in results.values())
        log_metrics(
            total_gen_tokens=made,
            total_elapsed_time=seconds,
            avg_speed=made / seconds if seconds else 0.0,
            additional_metrics={"rank": self._rank},
        )
        return [results[index] for index in range(len(requests))]

    def _batches(self, requests: Sequence[Instance]) -> list[list[tuple[int, list[dict], dict[str, Any]]]]:
        groups: dict[str, list[tuple[int, list[dict], dict[str, Any]]]] = {}
        for index, request in enumerate(requests):
            turns, settings = self._read(request)
            images = any(part["type"] == "image" for turn in turns for part in turn["content"])
            groups.setdefault(f"{images} {sorted(settings.items())!r}", []).append((index, turns, settings))
        size = self.batch_size
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]

    def _read(self, request: Instance) -> tuple[list[dict], dict[str, Any]]:
        """Return a request's conversation and generation settings."""
        _, to_messages, settings, index, task, split = request.args
        turns = ChatMessages(messages=to_messages(self.task_dict[task][split][index])).to_hf_messages()
        kinds = {part["type"] for turn in turns for part in turn["content"]}
        if kinds - {"image", "text"}:
            raise ValueError(
                f"Task {task} has {', '.join(sorted(kinds - {'image', 'text'}))}; this model takes images."
            )
        for turn in turns:
            for part in turn["content"]:
                if part["type"] == "image":
                    part["image"] = part["image"].convert("RGB")
        return turns, settings

    @torch.inference_mode()
    def _answer(self, conversations: Sequence[list[dict]], settings: dict[str, Any]) -> list[tuple[str, int]]:
        """Return what the model says in each conversation, and in how many tokens."""
        inputs = to_model(encode(self.processor, conversations), self.model)
        ids = self.model.generate(**inputs, **_generation(settings))[:, inputs["input_ids"].shape[1] :]
        pad = self.processor.tokenizer.pad_token_id
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        ends = settings.get("until") or []
        return [
            (_before(text, [ends] if isinstance(ends, str) else ends), int((row != pad).sum()))
            for text, row in zip(texts, ids)
        ]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse tasks that are scored by likelihood."""
        raise NotImplementedError("This model answers tasks by generating; choose the task's generate_until variant.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse tasks of several rounds."""
        raise NotImplementedError("This model answers in one round.")


def _generation(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `generate` for a task's settings; without a temperature above 0 it is greedy."""
    options = {name: settings[name] for name in GENERATION if settings.get(name) is not None}
    options.setdefault("max_new_tokens", MAX_NEW_TOKENS)
    if not options.get("temperature"):
        greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        return {**options, **greedy}
    return {**options, "do_sample": True}


def _before(text: str, ends: Sequence[str]) -> str:
    """Return the text up to the first of the ends."""
    places = [text.find(end) for end in ends if end and end in text]
    return text[: min(places, default=len(text))].strip()

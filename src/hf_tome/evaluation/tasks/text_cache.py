"""The task `text-cache`: how well a language model continues a context whose cache has merged.

The data are text files (.txt or .md), in a folder or one by itself. The first tokens of each are the context, and the
next ones are what it predicts; texts shorter than both are skipped.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...hub.sources import public_name
from ..data.texts import Texts, find_texts
from ..job import Job
from ..loading import load_task_model
from ..metrics.next_tokens import CacheScorer, Reader
from ..options import JobOptions
from .task import Task

NUM_CONTEXT, NUM_NEXT = 640, 64


def text_cache(options: JobOptions) -> Job:
    """Load a language model and the texts that it continues.

    Raises:
        ValueError: there are no text files, or the model generates no text.
        OSError: there is no such model.
    """
    files = find_texts(options)
    model = load_task_model(AutoModelForCausalLM, options, "continue a text")
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    num_next = options.max_new_tokens or NUM_NEXT
    texts = Texts(public_name(options.data), files, lambda text: tokenizer(text)["input_ids"], NUM_CONTEXT + num_next)
    return Job(
        TASK.name,
        public_name(options.model),
        model,
        texts,
        lambda samples: {"input_ids": torch.tensor([sample.content for sample in samples])},
        Reader(num_next),
        CacheScorer(model),
        settings={"context_tokens": NUM_CONTEXT, "next_tokens": num_next},
    )


TASK = Task(
    "text-cache",
    text_cache,
    frozenset({"max_new_tokens"}),
    {"unit": "texts", "tokens": "entries\nstored", "same": "next tokens that are the same as"},
)

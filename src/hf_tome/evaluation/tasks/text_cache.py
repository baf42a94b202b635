"""The task `text-cache`: how well a language model continues a context whose cache has merged.

The data are text files (.txt or .md), in a folder or one by itself. The first tokens of each are the context, with
needles hidden among them, and the next ones are what it predicts; texts shorter than both are skipped.
"""

from __future__ import annotations

from transformers import AutoModelForCausalLM, AutoTokenizer

from ...hub.sources import public_name
from ..data.contexts.haystacks import Haystacks
from ..data.contexts.texts import Texts, find_texts
from ..job import Job
from ..loading import load_task_model
from ..metrics.next_tokens import CacheScorer, Reader
from ..options import JobOptions
from .task import Task

NUM_CONTEXT, NUM_NEXT = 640, 64


def text_cache(options: JobOptions) -> Job:
    """Load a language model and the texts that it continues.

    Raises:
        ValueError: there are no text files, or the model generates no text, or the needles do not fit the context.
        OSError: there is no such model.
    """
    files = find_texts(options)
    model = load_task_model(AutoModelForCausalLM, options, "continue a text")
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    haystacks = Haystacks(tokenizer, options.context_tokens or NUM_CONTEXT, options.max_new_tokens or NUM_NEXT)
    length = haystacks.num_context + haystacks.num_next
    texts = Texts(public_name(options.data), files, lambda text: tokenizer(text)["input_ids"], length)
    return Job(
        TASK.name,
        public_name(options.model),
        model,
        texts,
        haystacks.rows,
        Reader(haystacks.num_next),
        CacheScorer(model, haystacks.questions),
        place="cache",
        settings={"context_tokens": haystacks.num_context, "next_tokens": haystacks.num_next},
    )


TASK = Task(
    "text-cache",
    text_cache,
    frozenset({"max_new_tokens", "context_tokens"}),
    {"unit": "texts", "tokens": "entries\nstored"},
    {
        "agreement": "agrees: share of the tokens that follow for which the likeliest is that of the full cache.",
        "tokens": "entries stored: in a layer, the mean over the layers.",
        "gflops": "GFLOPs: not counted.",
    },
)

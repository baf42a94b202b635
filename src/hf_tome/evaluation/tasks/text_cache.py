"""The task `text-cache`: how a language model goes on behind a context whose cache has merged.

The data are text files (.txt or .md), in a folder or one by itself. The first tokens of each are the context, and the
next ones are what the model is to go on with: its next-token distributions are compared with those of the full cache.
A text shorter than both is skipped, as no cache would be compared fairly between contexts of unequal lengths.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ...hub.sources import public_name
from ..data.left_out import LeftOut
from ..data.samples import Sample, SampleInfo, Skipped
from ..data.splits import DataError
from ..data.text_files import read_text
from ..job import Inputs, Job
from ..loading import load_task_model
from ..options import JobOptions
from ..store.record import Record
from ..store.record_checks import Check, is_amount, is_index
from .task import Task

NUM_CONTEXT = 640
"""Tokens of context."""
NUM_NEXT = 64
"""Tokens that follow, unless `max_new_tokens` says otherwise."""
SUFFIXES = (".txt", ".md")


@dataclass
class Texts:
    """Token ids of text files, each cut to as many tokens; see `Data`."""

    name: str
    files: Sequence[Path]
    encode: Callable[[str], list[int]]
    length: int
    split: str = "test"
    left_out: LeftOut = field(default_factory=LeftOut)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Sample]:
        return (found for found in self.read() if isinstance(found, Sample))

    def listed(self) -> list[SampleInfo]:
        """Return the names of the files, and their bytes as what stands for a label."""
        return [SampleInfo(file.name, file.stat().st_size) for file in self.files]

    def read(self, wanted: Callable[[int], bool] = lambda position: True) -> Iterator[Sample | Skipped]:
        """Yield the texts at the wanted positions, and those that are too short, or no text, with the reason."""
        for position, file in enumerate(self.files):
            if not wanted(position):
                continue
            try:
                ids = self.encode(read_text(file))[: self.length]
            except (OSError, UnicodeDecodeError) as error:
                yield Skipped(file.name, str(error), position)
                continue
            if len(ids) < self.length:
                yield Skipped(file.name, f"it has {len(ids)} tokens, fewer than {self.length}", position)
            else:
                yield Sample(file.name, ids, file.stat().st_size, position)


@dataclass(frozen=True)
class GoesOn:
    """What a model says behind a context; what is timed.

    Attributes:
        ids: (B, N + n), the context and what follows.
        logits: (B, n, V), before each of the tokens that follow.
        bytes: of the cache, for one row.
    """

    ids: Tensor
    logits: Tensor
    bytes: float


@dataclass(frozen=True)
class Reader:
    """Reads a context, and then what follows in one call."""

    num_next: int

    def __call__(self, model: PreTrainedModel, inputs: Inputs) -> GoesOn:
        """Return the next-token logits behind the context."""
        ids = inputs["input_ids"]
        split = ids.shape[1] - self.num_next - 1
        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        read = model(ids[:, :split], use_cache=True, logits_to_keep=1)
        cache = read[name]
        held = sum(_num_bytes(layer) for layer in cache.layers)
        logits = model(ids[:, split:-1], use_cache=True, **{name: cache}).logits
        return GoesOn(ids, logits, held / len(ids))


def _num_bytes(layer: Any) -> int:
    if hasattr(layer, "num_bytes"):
        return layer.num_bytes()
    return sum(tensor.numel() * tensor.element_size() for tensor in (layer.keys, layer.values))


@dataclass(frozen=True)
class CacheScorer:
    """Compares next tokens with those of the full cache.

    Attributes:
        model: the model of the job. Called without a cache it attends to every token, whether or not its cache would
            merge, which gives what to compare with.
    """

    model: PreTrainedModel

    def join(self, parts: Sequence[GoesOn]) -> GoesOn:
        """Return the parts of a batch as one."""
        held = sum(part.bytes * len(part.ids) for part in parts) / sum(len(part.ids) for part in parts)
        return GoesOn(torch.cat([part.ids for part in parts]), torch.cat([part.logits for part in parts]), held)

    def records(self, samples: Sequence[Sample], output: GoesOn) -> list[Record]:
        """Return numbers of each text."""
        num_next = output.logits.shape[1]
        with torch.inference_mode():
            full = self.model(output.ids[:, :-1], use_cache=False).logits[:, -num_next:].float().log_softmax(dim=-1)
        found = output.logits.float().log_softmax(dim=-1)  # (B, n, V)
        right = output.ids[:, -num_next:]
        values = {
            "kl": (full.exp() * (full - found)).sum(dim=-1).clamp(min=0),
            "same": (full.argmax(dim=-1) == found.argmax(dim=-1)).float(),
            "hit": (found.argmax(dim=-1) == right).float(),
            "nll": -found.gather(2, right[..., None])[..., 0],
        }
        means = {key: value.mean(dim=1).tolist() for key, value in values.items()}
        return [
            {"label": sample.label, "bytes": output.bytes, **{key: rows[at] for key, rows in means.items()}}
            for at, sample in enumerate(samples)
        ]

    def fields(self) -> Mapping[str, Check]:
        """Return the check of each field that `metrics` reads."""
        return {"label": is_index, **dict.fromkeys(("kl", "same", "hit", "nll", "bytes"), is_amount)}

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return next-token accuracy and agreement in percent, KL, perplexity and the cache's MiB."""
        mean = {key: sum(record[key] for record in done) / len(done) for key in ("kl", "same", "hit", "nll", "bytes")}
        return {
            "next_accuracy": 100 * mean["hit"],
            "agreement": 100 * mean["same"],
            "kl": mean["kl"],
            "perplexity": float(torch.tensor(mean["nll"]).exp()),
            "cache_mib": mean["bytes"] / 2**20,
        }


def text_cache(options: JobOptions) -> Job:
    """Load a language model and the texts that it is to go on with.

    Raises:
        ValueError: there are no text files, or the model generates no text.
        OSError: there is no such model.
    """
    files = _text_files(options)
    model = load_task_model(AutoModelForCausalLM, options, "go on with a text")
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


def _text_files(options: JobOptions) -> list[Path]:
    path = Path(options.data).expanduser()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    if not files:
        raise DataError(
            f"{options.data} has no text files; this task takes a folder of {' or '.join(SUFFIXES)} files, or one."
        )
    return files[: options.limit]


TASK = Task(
    "text-cache",
    text_cache,
    frozenset({"max_new_tokens"}),
    {"unit": "texts", "tokens": "entries\nstored", "same": "next tokens that are the same as"},
)

"""How a language model continues a context, compared with the same model where its cache holds every entry."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...adapters.cache_names import cache_keyword
from ...profiling.rounds import clock_for, time_once
from ..data.contexts.needles import Question
from ..data.samples import Sample
from ..store.record import Record
from ..store.record_checks import Check, is_amount, is_index


@dataclass(frozen=True)
class Continuation:
    """What a model says behind a context; what is timed.

    Attributes:
        ids: (B, N + n), the context and what follows.
        logits: (B, n, V), before each of the tokens that follow.
        caches: with each the number of its rows, filled with all but the last token of the context.
        bytes: of the cache, for one row.
        entries: stored in a layer, the mean over the layers.
        first_seconds: until the first token is known.
        next_seconds: of each token after it, of all rows together.
    """

    ids: Tensor
    logits: Tensor
    caches: list[tuple[Any, int]]
    bytes: float
    entries: float
    first_seconds: float
    next_seconds: float


@dataclass(frozen=True)
class Reader:
    """Reads a context, and then what follows, token by token as if the model had written it."""

    num_next: int

    def __call__(self, model: PreTrainedModel, inputs: dict[str, Any]) -> Continuation:
        """Return the next-token logits behind the context, with the seconds that they took."""
        ids, logits, caches = inputs["input_ids"], [], []
        split = ids.shape[1] - self.num_next - 1

        def read() -> None:
            name = cache_keyword(model)
            caches.append(model(ids[:, :split], use_cache=True, logits_to_keep=1)[name])
            # Questions are asked behind the context alone.
            caches.append(copy.deepcopy(caches[0]))
            step(split)

        def step(at: int) -> None:
            logits.append(continue_behind(model, caches[0], ids[:, at : at + 1]))

        def write() -> None:
            for at in range(split + 1, ids.shape[1] - 1):
                step(at)

        clock = clock_for(model.device)
        first, rest = (time_once(run, clock, model.device) for run in (read, write))
        layers = caches[1].layers
        held = sum(_num_bytes(layer) for layer in layers) / len(ids)
        entries = sum(layer.keys.shape[2] for layer in layers) / len(layers)
        seconds = rest / max(self.num_next - 1, 1)
        return Continuation(ids, torch.cat(logits, dim=1), [(caches[1], len(ids))], held, entries, first, seconds)


def continue_behind(model: PreTrainedModel, cache: Any, ids: Tensor) -> Tensor:
    """Return the logits (B, n, V) of tokens behind a cache, which then holds them."""
    return model(ids, use_cache=True, **{cache_keyword(model): cache}).logits


def _num_bytes(layer: Any) -> int:
    if hasattr(layer, "num_bytes"):
        return layer.num_bytes()
    return sum(tensor.numel() * tensor.element_size() for tensor in (layer.keys, layer.values))


@dataclass(frozen=True)
class CacheScorer:
    """Compares next tokens with those of the full cache, and asks for needles.

    Attributes:
        model: the model of the job. Called without a cache it attends to every token, whether or not its cache would
            merge, which gives what to compare with.
        questions: those about the needles in a sample's context, as many in each.
    """

    model: PreTrainedModel
    questions: Callable[[Sample], Sequence[Question]]

    def join(self, parts: Sequence[Continuation]) -> Continuation:
        """Return the parts of a batch as one."""
        rows = [len(part.ids) for part in parts]
        ids, logits = (torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "logits"))
        caches = [cache for part in parts for cache in part.caches]
        first, following = (sum(getattr(part, f"{name}_seconds") for part in parts) for name in ("first", "next"))
        held = sum(part.bytes * count for part, count in zip(parts, rows)) / sum(rows)
        return Continuation(ids, logits, caches, held, parts[0].entries, first, following)

    def records(self, samples: Sequence[Sample], output: Continuation) -> list[Record]:
        """Return numbers of each text."""
        num_next = output.logits.shape[1]
        with torch.inference_mode():
            full = self.model(output.ids[:, :-1], use_cache=False).logits[:, -num_next:].float().log_softmax(dim=-1)
            needles = self._needles([self.questions(sample) for sample in samples], output)
        log_probabilities = output.logits.float().log_softmax(dim=-1)  # (B, n, V)
        right = output.ids[:, -num_next:]
        values = {
            "kl": (full.exp() * (full - log_probabilities)).sum(dim=-1).clamp(min=0),
            "same": (full.argmax(dim=-1) == log_probabilities.argmax(dim=-1)).float(),
            "hit": (log_probabilities.argmax(dim=-1) == right).float(),
            "nll": -log_probabilities.gather(2, right[..., None])[..., 0],
        }
        means = {key: value.mean(dim=1).tolist() for key, value in values.items()}
        of_all = {"tokens": output.entries, "bytes": output.bytes}
        seconds = {"first": output.first_seconds, "following": output.next_seconds / len(samples)}
        return [
            {
                "label": sample.label,
                "needles": needles[at],
                **of_all,
                **seconds,
                **{key: rows[at] for key, rows in means.items()},
            }
            for at, sample in enumerate(samples)
        ]

    def _needles(self, asked: Sequence[Sequence[Question]], output: Continuation) -> list[float]:
        """Return, for each row, the share of its answers' tokens that are the likeliest, given the ones before."""
        shares, begin = [], 0
        for cache, count in output.caches:
            rows = asked[begin : begin + count]
            last = output.ids[begin : begin + count, -output.logits.shape[1] - 1 :][:, :1]
            parts = [self._answered(copy.deepcopy(cache), last, questions) for questions in zip(*rows)]
            shares += [sum(row) / len(row) for row in zip(*parts)]
            begin += count
        return shares

    def _answered(self, cache: Any, last: Tensor, questions: Sequence[Question]) -> list[float]:
        """Ask each row a question, behind its `last` token of context (B, 1)."""
        longest = max(len(question.ids) for question in questions)
        # Rows of unequal length end in whatever token: none before it sees it.
        ids = last.new_tensor([[*question.ids, *[0] * (longest - len(question.ids))] for question in questions])
        likeliest = continue_behind(self.model, cache, torch.cat([last, ids[:, :-1]], dim=1)).argmax(dim=-1)
        return [
            float((likeliest[at] == ids[at])[: len(question.ids)][-question.num_answer :].float().mean())
            for at, question in enumerate(questions)
        ]

    def fields(self) -> Mapping[str, Check]:
        """Return the check of each field that `metrics` reads."""
        return {"label": is_index, **dict.fromkeys(MEANS, is_amount)}

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return accuracy, agreement and needles in percent, KL, perplexity, the cache's MiB, and speeds."""
        mean = {key: sum(record[key] for record in done) / len(done) for key in MEANS}
        return {
            "next_accuracy": 100 * mean["hit"],
            "agreement": 100 * mean["same"],
            "kl": mean["kl"],
            "perplexity": float(torch.tensor(mean["nll"]).exp()),
            "needles": 100 * mean["needles"],
            "cache_mib": mean["bytes"] / 2**20,
            "first_token_ms": 1000 * mean["first"],
            "written_per_second": 1 / mean["following"],
        }


MEANS = ("kl", "same", "hit", "nll", "bytes", "needles", "first", "following")
"""The fields of records whose means are metrics."""

"""How a language model continues a context, compared with the same model where its cache holds every entry."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.samples import Sample
from ..store.record import Record
from ..store.record_checks import Check, is_amount, is_index


@dataclass(frozen=True)
class GoesOn:
    """What a model says behind a context; what is timed.

    Attributes:
        ids: (B, N + n), the context and what follows.
        logits: (B, n, V), before each of the tokens that follow.
        bytes: of the cache, for one row.
        entries: stored in a layer, the mean over the layers.
    """

    ids: Tensor
    logits: Tensor
    bytes: float
    entries: float


@dataclass(frozen=True)
class Reader:
    """Reads a context, and then what follows in one call."""

    num_next: int

    def __call__(self, model: PreTrainedModel, inputs: dict[str, Any]) -> GoesOn:
        """Return the next-token logits behind the context."""
        ids = inputs["input_ids"]
        split = ids.shape[1] - self.num_next - 1
        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        read = model(ids[:, :split], use_cache=True, logits_to_keep=1)
        cache = read[name]
        held = sum(_num_bytes(layer) for layer in cache.layers)
        entries = sum(layer.keys.shape[2] for layer in cache.layers) / len(cache.layers)
        logits = model(ids[:, split:-1], use_cache=True, **{name: cache}).logits
        return GoesOn(ids, logits, held / len(ids), entries)


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
        ids, logits = (torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "logits"))
        return GoesOn(ids, logits, held, parts[0].entries)

    def records(self, samples: Sequence[Sample], output: GoesOn) -> list[Record]:
        """Return numbers of each text."""
        num_next = output.logits.shape[1]
        with torch.inference_mode():
            full = self.model(output.ids[:, :-1], use_cache=False).logits[:, -num_next:].float().log_softmax(dim=-1)
        log_probabilities = output.logits.float().log_softmax(dim=-1)  # (B, n, V)
        right = output.ids[:, -num_next:]
        values = {
            "kl": (full.exp() * (full - log_probabilities)).sum(dim=-1).clamp(min=0),
            "same": (full.argmax(dim=-1) == log_probabilities.argmax(dim=-1)).float(),
            "hit": (log_probabilities.argmax(dim=-1) == right).float(),
            "nll": -log_probabilities.gather(2, right[..., None])[..., 0],
        }
        means = {key: value.mean(dim=1).tolist() for key, value in values.items()}
        return [
            {
                "label": sample.label,
                "tokens": output.entries,
                "bytes": output.bytes,
                **{key: rows[at] for key, rows in means.items()},
            }
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

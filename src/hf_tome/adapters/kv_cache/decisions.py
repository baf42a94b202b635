"""What is decided for the cache of one decoder, and what is known of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...config import MergeConfig
from ...merging.methods import get_method
from ...patching.patch import own_class
from ...patching.plans import CachedEntries, Description, Plan
from ...patching.recorder import PassSummary, Recorder
from .families import Family
from .layers.attended import Turning
from .layers.layer import MergingLayer
from .rule import Rule


class CacheSummary(PassSummary):
    """The entries of each layer after the latest call."""

    def __init__(self) -> None:
        super().__init__([])
        self.layers: dict[int, CachedEntries] = {}


@dataclass(frozen=True)
class CacheDetail:
    """What the attention of one layer reads.

    Attributes:
        family: the model's row.
        rule: how the layer's entries merge.
        rotary: the model's rotary embedding, in a tuple so that it does not become a part of the attention; empty
            where the layer has no position embedding.
    """

    family: Family
    rule: Rule
    rotary: tuple[Any, ...]

    def turning(self, config: Any) -> Turning:
        """Return how keys are turned in this call; lengths may change the frequencies (dynamic RoPE)."""
        if not self.rotary:
            return Turning(torch.zeros(0), self.family.interleaved)
        rotary, name = self.rotary[0], self.family.frequencies
        prefix = name.removesuffix("inv_freq")
        scale = getattr(rotary, f"{prefix}attention_scaling", 1.0)
        return Turning(getattr(rotary, name), self.family.interleaved, float(scale))


@dataclass(frozen=True)
class CachePlan(Plan):
    """The decisions for one decoder.

    Attributes:
        layers: the layers whose entries may merge; of the others some keep a window.
        num_layers: of the decoder.
        has_other_layers: whether some layers keep something else than all entries.
        merges: whether the config merges anything.
    """

    layers: tuple[int, ...] = ()
    num_layers: int = 0
    has_other_layers: bool = False
    merges: bool = True

    def keep(self, recorder: Recorder, index: int, entries: CachedEntries) -> None:
        """Note the entries of a layer."""
        summary = recorder.summary
        if not isinstance(summary, CacheSummary):
            summary = CacheSummary()
            recorder.end(summary)
        summary.layers[index] = entries
        summary.tokens, summary.real = [entries.seen, entries.stored], [None, None]

    def describe(self, module: Any, summary: PassSummary | None) -> Description:
        """Return what `report` tells; see the base class."""
        cached = dict(summary.layers) if isinstance(summary, CacheSummary) else {}
        notes = []
        if not self.merges:
            notes.append(
                "nothing merges: every entry stays, and the output is the unmerged model's, bit by bit; set "
                "`keep_ratio`, the share of the entries that is to stay, below 1"
            )
        elif not cached:
            notes.append("no prompt has been read yet; run the model, or `generate`, and report again")
        elif all(entries.stored == entries.seen for entries in cached.values()):
            first, last = self.config.protect
            notes.append(
                f"nothing merged: {next(iter(cached.values())).seen} tokens were seen, and the first {first} and the "
                f"last {last} never merge (`protect`)"
            )
        if len(self.layers) < self.num_layers:
            notes.append(f"{self.num_layers - len(self.layers)} of {self.num_layers} layers keep their entries")
        return Description(
            own_class(module).__name__,
            schedule=(0,) * self.num_layers,
            merging=tuple(layer in self.layers for layer in range(self.num_layers)),
            blocks_run=self.num_layers,
            backend=module.config._attn_implementation,
            proportional_attention=uses_sizes(self.config),
            num_prefix_tokens=self.config.protect[0],
            notes=tuple(notes),
            cached=cached,
        )


def uses_sizes(config: MergeConfig) -> bool:
    """Return whether log(size) is added to the logits of merged entries."""
    method = get_method(config.method)
    return not method.drops_tokens and config.weighs_attention(method.proportional)


def entries_of(layer: MergingLayer) -> CachedEntries:
    """Return what a layer holds."""
    keys, values = layer.keys, layer.values
    assert keys is not None
    assert values is not None
    held = sum(tensor.numel() * tensor.element_size() for tensor in (keys, values))
    return CachedEntries(layer.seen, layer.num_stored, held * layer.seen // layer.num_stored, layer.num_bytes())

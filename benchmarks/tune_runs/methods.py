"""Methods of other papers as rows of the table, and thresholds that are calibrated block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hf_tome.merging import MatchInputs, Merge, Method
from hf_tome.merging.base import pair_merge
from hf_tome.merging.mame.matching import matrix_matching
from hf_tome.merging.methods import METHODS

ALPHA, MARGIN = 1.0, 0.9
"""PiToMe's energy: the slope below the margin, and the margin in the first block, which falls to 0."""
HALVINGS = 8


def _pitome(inputs: MatchInputs) -> Merge:
    """Merge the 2r tokens of the highest energy, every other of them into its most similar one of the rest (PiToMe).

    Energy is the mean of f(cosine) to all tokens, f(s) = s from a margin on, and alpha (exp(s - margin) - 1) below.
    """
    tokens = torch.nn.functional.normalize(inputs.metric.float(), dim=-1)
    cosines = tokens @ tokens.mT  # (B, N, N)
    margin = MARGIN * (1 - inputs.layer / inputs.num_layers)
    energy = torch.where(cosines >= margin, cosines, ALPHA * ((cosines - margin).exp() - 1)).mean(dim=-1)  # (B, N)
    energy[:, : inputs.num_prefix_tokens] = -torch.inf
    order = energy.argsort(dim=-1, descending=True, stable=True)[:, : 2 * inputs.r]
    sources, destinations = order[:, ::2], order[:, 1::2]  # (B, r)
    rows = cosines.gather(1, sources[..., None].expand(-1, -1, cosines.shape[-1]))
    partner = rows.gather(2, destinations[:, None].expand(-1, sources.shape[1], -1)).argmax(dim=-1)
    positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
    into = destinations.gather(1, partner)
    return pair_merge(sources, into, positions, inputs.num_prefix_tokens, inputs.fields["combine"])


PITOME = Method("pitome", _pitome, fields=("r", "combine"), compared_pairs=lambda before, *_: before**2)


@dataclass
class Thresholds:
    """One threshold a block for MaMe, calibrated so that as many tokens merge on average as a schedule says.

    Attributes:
        schedule: tokens to merge in each block.
        tried: while calibrating, by block, the threshold of each batch.
        values: what is used; `None` while calibrating.
    """

    schedule: Sequence[float] = ()
    tried: dict[int, list[float]] = field(default_factory=dict)
    values: list[float] | None = None

    def match(self, inputs: MatchInputs) -> Merge:
        """Merge by the block's threshold, or by the one that merges as many as scheduled in this batch."""
        if self.values is not None:
            return self._merge(inputs, self.values[inputs.layer])
        wanted, low, high = self.schedule[inputs.layer], 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self._merged(inputs, middle) > wanted else (low, middle)
        self.tried.setdefault(inputs.layer, []).append(high)
        return self._merge(inputs, high)

    def finish(self) -> None:
        """Use the means over the batches from now on."""
        self.values = [sum(self.tried[layer]) / len(self.tried[layer]) for layer in sorted(self.tried)]

    def _merge(self, inputs: MatchInputs, threshold: float) -> Merge:
        return matrix_matching(inputs.metric, threshold, inputs.num_prefix_tokens, size=inputs.size)

    def _merged(self, inputs: MatchInputs, threshold: float) -> float:
        """Return how many tokens of an image merge on average."""
        metric, size = inputs.metric, inputs.size
        before = float((size > 0).sum()) if size is not None else metric.shape[0] * metric.shape[1]
        _, after = self._merge(inputs, threshold).merge(metric, size)
        return (before - float((after > 0).sum())) / len(metric)


THRESHOLDS = Thresholds()
MAME = replace(
    METHODS["mame"],
    name="mame_by_block",
    match=lambda inputs: THRESHOLDS.match(inputs),
    layers=lambda num_layers: range(num_layers - 1),  # nothing reads what merges in the last block
)


def calibrate(schedule: Sequence[float], run: Callable[[], Any]) -> list[float]:
    """Return thresholds that merge as many tokens as scheduled while `run` passes the samples through the model."""
    THRESHOLDS.schedule, THRESHOLDS.tried, THRESHOLDS.values = schedule, {}, None
    run()
    THRESHOLDS.finish()
    return THRESHOLDS.values or []

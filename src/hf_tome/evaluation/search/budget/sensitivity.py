"""How far a model's outputs move where tokens merge in one block alone: a picture of where merging is cheap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ....config import MergeConfig, format_config
from ....files import replacing
from ...variants import Variant
from .spaces.costs import Costs
from .trials import Exhausted, Trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 0.1
"""The share of the tokens that the one block merges."""
COLOUR = "#0072b2"


def sensitivities(trials: Trials, costs: Costs, fields: dict) -> list[float]:
    """Return the divergence that merging a tenth of the tokens in each block alone gives, as far as trials are left.

    Args:
        trials: started; each block is an evaluation.
        costs: of the model.
        fields: of the `MergeConfig`, besides `r`.
    """
    r = max(1, round(SHARE * (costs.shape.num_tokens - costs.shape.num_prefix_tokens)))
    losses = []
    for block in range(costs.blocks):
        config = MergeConfig(r=[0] * block + [r], **fields)
        try:
            losses.append(trials.run(Variant(format_config(config), config)).loss)
        except Exhausted:
            break
    return losses


def draw_sensitivities(values: list[float]) -> Figure:
    """Draw the divergence of each block as a bar."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.bar(range(len(values)), values, color=COLOUR)
    axis.set_xlabel("block in which alone a tenth of the tokens merges")
    axis.set_ylabel("divergence from unmerged")
    axis.set_xticks(range(len(values)))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def plot_sensitivities(values: list[float], path: Path) -> None:
    """Write what `draw_sensitivities` draws as PNG."""
    with replacing(path) as unfinished:
        draw_sensitivities(values).savefig(unfinished, format="png")

"""Where projected tokens merge, once, in front of a language model: one parameter, the share of them that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .....config import MergeConfig, format_config
from .....merging.methods import get_method
from ....variants import Variant
from .space import Settings, Size

PROJECTED = "projected"
"""The value of `MergeConfig.where`."""
DIGITS = 4
"""To so many digits the share of the tokens that merge is rounded."""


def projected_starts(methods: Sequence[str]) -> list[Settings]:
    """Return what is tried at each budget: every method, and ToMe with the norm of merged tokens kept too."""
    fields: list[dict[str, Any]] = [{"method": name} for name in methods]
    if "tome" in methods:
        fields.insert(1, {"method": "tome", "combine": "keep_norm"})
    return [Settings(centre=None, fields={**each, "where": PROJECTED}) for each in fields]


@dataclass(frozen=True)
class ProjectedSpace:
    """Configs that merge projected tokens; what they cost is the share of the image tokens that is left.

    The multiply-adds of the language model in front of which they merge go with its tokens, of which those of the
    image are most. `space.Space` is the same of a tower, where image sizes and the last block are choices too.
    """

    unit: str = "image tokens"
    sizes: Mapping[Size, int] = field(default_factory=dict)
    exact_share: float | None = None

    def share(self, variant: Variant) -> float:
        """Return the share of the image tokens that a variant leaves."""
        if not variant.merges:
            return 1.0
        config = variant.config
        return round(1 - (config.ratio or 0.0), DIGITS) if config.keep_ratio is None else config.keep_ratio

    def variant(self, settings: Settings, budget: float) -> Variant | None:
        """Return the variant of these settings that leaves a share of the tokens; `None` where there is none."""
        fields = {"where": PROJECTED, **settings.fields}
        method = get_method(fields.get("method", "tome"))
        if method.takes_r:
            merged = round(1 - budget, DIGITS)
            fields["ratio"] = merged
            if not 0 < merged < 1:
                return None
        elif "keep_ratio" in method.fields and 0.5 <= budget < 1:  # it merges one half into the other, once
            fields["keep_ratio"] = round(budget, DIGITS)
        else:
            return None
        config = MergeConfig(**fields)
        return Variant(format_config(config), config)

    def decreasing(self, budget: float) -> None:
        """Return nothing: tokens merge once, so that there is no schedule."""

    def images(self, size: Size) -> Variant:
        """Raise: images of another size are another number of tokens, which is no choice here."""
        raise NotImplementedError

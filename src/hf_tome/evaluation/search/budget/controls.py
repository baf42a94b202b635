"""What is confirmed beside the choice: other ways to the same GFLOPs, and to the same measured time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....files import write_whole
from ...variants import Variant
from .front import CONSTANT, MAME
from .spaces.projected import ProjectedSpace
from .spaces.space import Settings, Size, Space

CONTROLS = ("constant ToMe", "decreasing ToMe", "MaMe", "random pruning", "smaller images")
"""What is shown beside the choice."""
EXACT = "unmerged, exact last block"
"""The unmerged model that computes of its last block what is read alone, as merged ones do."""
IMAGES = "smaller images"
FASTER, SLOWER, MIXED = (f"{IMAGES}, {which}" for which in ("just faster", "just slower", "mixed to equal time"))
"""Image sizes come in steps, of which none need take as long as the choice; a mix of two neighbours does."""
FILE = "equal_time.json"
NEAR = (0.6, 1.6)
"""Images are timed that cost as many times the GFLOPs of the choice."""


@dataclass
class Controls:
    """The variants of one choice.

    Attributes:
        is_supported: whether a model can run with a variant: one that needs every token cannot with random pruning.
        seconds: the time of variants on one batch, as a share of the unmerged model's.
        against: of `CONTROLS`.
        folder: where what was timed is kept, as another timing would give other controls, whose samples would have
            to be run anew.
    """

    space: Space | ProjectedSpace
    is_supported: Callable[[Variant], bool]
    seconds: Callable[[Mapping[str, Variant]], dict[str, float]]
    against: Sequence[str] = CONTROLS
    folder: Path | None = None

    def beside(self, chosen: Variant, share: float, at: Sequence[str]) -> dict[str, Variant]:
        """Return the choice and its controls by what they are.

        Args:
            chosen: the choice.
            share: what it costs, of the unmerged model's GFLOPs.
            at: at equal `"gflops"`, at equal `"time"`.
        """
        exact = {} if self.space.exact_share is None else {EXACT: Variant(EXACT, control=EXACT, exact_last_block=True)}
        at_cost = self._at_cost(share)
        named = {"tuned": chosen, **exact, **(at_cost if "gflops" in at else {})}
        if "time" in at:
            taken = {variant.name for variant in named.values()}
            at_time = self._at_time(chosen, at_cost)
            named |= {name: variant for name, variant in at_time.items() if variant.name not in taken}
        return named

    def at_budget(self, chosen: Variant, budget: float) -> dict[str, Variant]:
        """Return the choice and the constant schedule at another budget."""
        constant = self.space.variant(CONSTANT, budget)
        named = {f"tuned, {budget:g}": chosen}
        return named if constant is None else {**named, f"constant ToMe, {budget:g}": constant}

    def _at_cost(self, share: float) -> dict[str, Variant]:
        share = min(max(share, 0.01), 1.0)
        pruning = Settings(centre=None, fields={"method": "random_prune"})
        controls = {
            "constant ToMe": self.space.variant(CONSTANT, share),
            "decreasing ToMe": self.space.decreasing(share),
            "MaMe": self.space.variant(MAME, share),
            "random pruning": self.space.variant(pruning, share),
            IMAGES: self._nearest_images(share),
        }
        return {
            name: replace(variant, control=name)
            for name, variant in controls.items()
            if variant is not None and name in self.against and self.is_supported(variant)
        }

    def _at_time(self, chosen: Variant, at_cost: Mapping[str, Variant]) -> dict[str, Variant]:
        """Return each control at about the time of the choice, and the image sizes around it.

        A control's cost is scaled once by its own time; what is left of a difference is in the table's speed-up.
        """
        timed = self._timed(chosen, at_cost)
        named = {}
        for name, share in timed["shares"].items():
            variant = self._at_cost(share).get(name)
            if variant is not None:
                named[f"{name}, equal time"] = replace(variant, control=name)
        for name, size in timed["sizes"].items():
            named[name] = replace(self.space.images(tuple(size)), control=IMAGES)
        return named

    def _timed(self, chosen: Variant, at_cost: Mapping[str, Variant]) -> dict[str, Any]:
        path = None if self.folder is None else self.folder / FILE
        if path is not None and path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept.get("tuned") == chosen.name and kept.get("against") == list(self.against):
                return kept
        sizes = self._sizes_near(self.space.share(chosen)) if IMAGES in self.against else []
        merged = {name: variant for name, variant in at_cost.items() if name != IMAGES}
        images = {str(size): self.space.images(size) for size in sizes}
        seconds = self.seconds({"tuned": chosen, **merged, **images})
        limit = seconds["tuned"]
        faster = [size for size in sizes if seconds[str(size)] <= limit]
        slower = [size for size in sizes if seconds[str(size)] > limit]
        timed = {
            "tuned": chosen.name,
            "against": list(self.against),
            "shares": {name: self.space.share(variant) * limit / seconds[name] for name, variant in merged.items()},
            "sizes": {**({FASTER: faster[-1]} if faster else {}), **({SLOWER: slower[0]} if slower else {})},
        }
        if path is not None:
            write_whole(path, json.dumps(timed) + "\n")
        return timed

    def _nearest_images(self, share: float) -> Variant | None:
        variants = [self.space.images(size) for size in self.space.sizes]
        return min(variants, key=lambda variant: abs(self.space.share(variant) - share), default=None)

    def _sizes_near(self, share: float) -> list[Size]:
        """Return the image sizes whose cost is near to a share, from small to large."""
        shares = {size: self.space.share(self.space.images(size)) for size in self.space.sizes}
        low, high = (factor * share for factor in NEAR)
        return [size for size in sorted(shares, key=shares.__getitem__) if low <= shares[size] <= high]

"""What is compared with the unmerged model: a merge config, or a control at the same cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..api import apply
from ..config import MergeConfig, format_config
from ..config.text import is_unmerged
from ..profiling.slice_oracle import make_exact

UNMERGED = "unmerged"


@dataclass(frozen=True)
class Variant:
    """One row of the results.

    Attributes:
        name: what the row is called, the text that `--config` takes where it is a config.
        config: what merges.
        image_size: height and width that images are downsampled to before the model sees them.
        control: `None`, or what the row is a control by: `"downsampled"` or `"random_prune"`.
        exact_last_block: merge nothing, and compute of the last block what is read alone.
    """

    name: str
    config: MergeConfig = field(default_factory=MergeConfig)
    image_size: tuple[int, int] | None = None
    control: str | None = None
    exact_last_block: bool = False

    @property
    def merges(self) -> bool:
        """Whether the config merges anything."""
        return not is_unmerged(self.config)

    @property
    def changes_model(self) -> bool:
        """Whether the model runs otherwise than unmerged."""
        return self.merges or self.exact_last_block

    def attach(self, model: Any) -> Any:
        """Let an unmerged model run as this row says, in place; `hf_tome.remove` undoes it."""
        if self.exact_last_block:
            make_exact(model)
        elif self.merges:
            apply(model, self.config)
        return model

    def view(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs as this variant's model takes them, images (B, C, H, W) downsampled with antialiasing."""
        if self.image_size is None:
            return inputs
        pixels = inputs["pixel_values"]
        small = torch.nn.functional.interpolate(pixels.float(), self.image_size, mode="bicubic", antialias=True)
        return {**inputs, "pixel_values": small.to(pixels.dtype), "interpolate_pos_encoding": True}


def as_variants(configs: Iterable[MergeConfig | Variant], place: str = "auto") -> list[Variant]:
    """Return the unmerged model and then the others as they come, each once; `place` is where nothing else merges."""
    variants = [
        config if isinstance(config, Variant) else Variant(format_config(config), config) for config in configs
    ]
    others = [variant for variant in variants if variant.changes_model or variant.image_size is not None]
    return [Variant(UNMERGED, _idle(others, place)), *{variant.name: variant for variant in others}.values()]


def _idle(variants: Sequence[Variant], place: str) -> MergeConfig:
    """Return the config that merges nothing, in the place of all others, as the model may not support another."""
    places = {variant.config.where for variant in variants if variant.merges}
    return MergeConfig(where=places.pop() if len(places) == 1 else place)

"""The recipes: what is trained, from which weights, and what merges."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from hf_tome import MergeConfig
from hf_tome.config import parse_config
from hf_tome.hub.shipped import MODELS

QUARTERS = (1, 2, 3)
"""The paper's blocks 3, 6 and 9 of 12 (MaMe, section 4), for any number of blocks."""


@dataclass(frozen=True)
class Recipe:
    """One way to train with merging.

    Attributes:
        summary: what it does, in a line.
        config: what merges, as `--config` takes it.
        model, data: the defaults of `--model` and `--data`, which need no network.
        kind: of the data, `"Image"` or `"Video"`.
        at_quarters: whether the blocks after each quarter of the model merge.
        from_scratch: whether the weights begin at random.
        last_block: whether the last block alone is trained, with the norm after it and the head.
        distils: whether the unmerged model teaches.
        learning_rate: the default.
    """

    summary: str
    config: str
    model: str = str(MODELS / "digits-vit")
    data: str = "digits"
    kind: str = "Image"
    at_quarters: bool = False
    from_scratch: bool = False
    last_block: bool = False
    distils: bool = False
    learning_rate: float = 1e-4

    def merge_config(self, text: str | None, model_config: PreTrainedConfig) -> MergeConfig:
        """Return what merges in a model, as `text` says or, by default, the recipe."""
        config = parse_config(self.config if text is None else text)
        if not self.at_quarters or text is not None:
            return config
        num_blocks = model_config.num_hidden_layers
        blocks = sorted({max(round(num_blocks * quarter / 4) - 1, 0) for quarter in QUARTERS})
        return MergeConfig.from_dict({**config.to_dict(), "layers": blocks})


MAME_2_TO_1 = "method=mame,threshold=0.5,keep_ratio=0.5"

RECIPES = {
    "tome-finetune": Recipe("Fine-tune a pretrained model with ToMe.", "r=16"),
    "tome-scratch": Recipe("Train from random weights with ToMe.", "r=16", from_scratch=True, learning_rate=1e-3),
    "mame-scratch": Recipe(
        "Train from random weights with MaMe, which halves the tokens after each quarter of the blocks.",
        MAME_2_TO_1,
        at_quarters=True,
        from_scratch=True,
        learning_rate=1e-3,
    ),
    "mame-last-block": Recipe(
        "Merge a pretrained model with MaMe and train its last block alone.",
        "method=mame,threshold=0.8",
        last_block=True,
    ),
    "distil": Recipe("Train a merged model on what the same model says unmerged.", "r=24", distils=True),
    "videomae-finetune": Recipe(
        "Fine-tune a pretrained VideoMAE with ToMe.",
        "r=65",
        model=str(MODELS / "digits-videomae"),
        data="clips",
        kind="Video",
    ),
}

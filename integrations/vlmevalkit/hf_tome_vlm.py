"""Any image-text-to-text model of transformers, with token merging, as a model of VLMEvalKit."""

from __future__ import annotations

from typing import Any

import torch
import vlmeval.vlm
from hf_tome_chat import answer, multiple_choice, to_turns
from transformers import AutoModelForImageTextToText, AutoProcessor
from vlmeval.dataset import DATASET_TYPE
from vlmeval.vlm.base import BaseModel

import hf_tome
from hf_tome.config import parse_config

MAX_NEW_TOKENS = 512


class HfTomeVlm(BaseModel):
    """A model whose image tokens are merged.

    Args:
        pretrained: Hub id or folder of the model and its processor.
        merge: a merge config as `hf-tome eval --config` takes it (`r=8`, `method=mame,threshold=0.9`), or the path of
            a `merge_config.json`; empty for the unmerged model.
        dtype, device: how the model is loaded; a GPU where there is one.
        max_new_tokens: how much the model may say.
    """

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(
        self,
        pretrained: str,
        merge: str = "",
        dtype: str = "auto",
        device: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ):
        config = parse_config(merge) if merge else None  # before anything heavy is loaded
        self.model = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype, trust_remote_code=False)
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        self.processor = AutoProcessor.from_pretrained(pretrained, trust_remote_code=False)
        self.max_new_tokens = max_new_tokens
        if config is not None:
            hf_tome.apply(self.model, config)

    def use_custom_prompt(self, dataset: str) -> bool:
        """Ask multiple choice as LLaVA was trained to be asked."""
        return DATASET_TYPE(dataset) == "MCQ"

    def build_prompt(self, line: Any, dataset: str | None = None) -> list[dict[str, str]]:
        """Return the message of a row of options."""
        images = self.dump_image(line, dataset)
        paths = [images] if isinstance(images, str) else images
        return [
            *({"type": "image", "value": path} for path in paths),
            {"type": "text", "value": multiple_choice(line)},
        ]

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """Return the answer to a message."""
        return answer(self.model, self.processor, to_turns(message), self.max_new_tokens)


def register() -> None:
    """Let the kit's configs name the class."""
    vlmeval.vlm.HfTomeVlm = HfTomeVlm

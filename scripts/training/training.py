"""What the training scripts of the small models share: batches of digits, a schedule, saving, the model card."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_tome.demo.digits_scenes import MEAN, STD

SEED = 0
INKED = 0.08
"""Ink in a patch from which on it counts as part of a digit, as a share."""
Loss = Callable[[Any, torch.Generator], Tensor]
"""One stage's loss of a batch of indices (B,) of training digits."""


@dataclass(frozen=True)
class Stage:
    """Some epochs with one loss, for instance at fewer tokens than the model takes in the end."""

    name: str
    epochs: int
    loss: Loss
    learning_rate: float = 2e-3
    batch_size: int = 32


def fit(model: nn.Module, stage: Stage, count: int) -> float:
    """Train on `count` digits with AdamW on one learning-rate cycle; return the minutes it took."""
    generator = torch.Generator().manual_seed(SEED)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=stage.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    steps = stage.epochs * -(-count // stage.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, stage.learning_rate, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )
    start = time.perf_counter()
    model.train()
    for epoch in range(stage.epochs):
        total = 0.0
        for which in torch.randperm(count, generator=generator).split(stage.batch_size):
            loss = stage.loss(which, generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(which)
        minutes = (time.perf_counter() - start) / 60
        print(f"{stage.name}  epoch {epoch + 1}  loss {total / count:.4f}  {minutes:.1f} min", flush=True)
    return minutes


def normalise(pictures: Tensor) -> Tensor:
    """Return pictures (0 to 1) as the models take them, rounded to the bytes that a file would hold."""
    return ((pictures * 255).round() / 255 - MEAN) / STD


def square_processor(cls: Any, side: int) -> Any:
    """Return an image processor that resizes to a square and normalises as `normalise` does."""
    size = {"height": side, "width": side}
    return cls(size=size, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[STD] * 3)


def livelier(model: nn.Module, factor: float = 4) -> None:
    """Scale up the initial weights, with whose standard deviation of 0.02 so narrow a model hardly starts to learn."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and 0 < parameter.std() < 0.06:
                parameter.mul_(factor)


class PatchTeacher(nn.Module):
    """A classifier of single patches, for training alone: what digit each belongs to, or that it is background.

    A small transformer that is told one label a picture takes many times as long to find out where to look.
    """

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.classes = classes
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes + 1))

    def forward(self, tokens: Tensor, inked: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of tokens (B, N, C) with so much ink (B, N) of digits of these labels (B,) or (B, N)."""
        own = labels if labels.ndim == 2 else labels[:, None]
        right = torch.where(inked > INKED, own, self.classes)
        return F.cross_entropy(self.head(tokens).flatten(0, 1), right.flatten())


def look_at_cell(embeddings: nn.Module, side: int, special: int) -> None:
    """Make the embeddings of CLIP or SigLIP take pictures of one cell, at the first cell's positions."""
    grid = embeddings.image_size // embeddings.patch_size
    cell = side // embeddings.patch_size
    patches = torch.arange(grid * grid).view(grid, grid)[:cell, :cell]
    embeddings.image_size = side
    embeddings.position_ids = torch.cat([torch.arange(special), patches.flatten() + special])[None]


def look_at_all(embeddings: nn.Module, side: int, special: int) -> None:
    """Make them take whole pictures again, and start each cell with the positions learnt for the first."""
    cell, grid = embeddings.image_size // embeddings.patch_size, side // embeddings.patch_size
    embeddings.image_size = side
    embeddings.position_ids = torch.arange(special + grid * grid)[None]
    with torch.no_grad():
        table = embeddings.position_embedding.weight[special:].view(grid, grid, -1)
        table.copy_(table[:cell, :cell].repeat(grid // cell, grid // cell, 1))


def word_tokenizer(words: Iterable[str], **kwargs: Any) -> Any:
    """Return a tokenizer of whole words, in lower case; its first tokens are <pad>, <bos>, <unk> and <eos>."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # CLIP takes an <eos> with id 2 for a mistake of old configs, and then reads the sentence elsewhere.
    special = ["<pad>", "<bos>", "<unk>", "<eos>", *kwargs.get("extra_special_tokens", ())]
    vocabulary = {word: index for index, word in enumerate([*special, *sorted(set(words))])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<bos>", vocabulary["<bos>"]), ("<eos>", vocabulary["<eos>"])]
    single = kwargs.pop("single", "<bos> $A <eos>")
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", **kwargs
    )


def save_half(model: PreTrainedModel, folder: Path, *processors: Any) -> None:
    """Write the weights in float16, which halves the file, and a config that loads them as float32."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private to its owner
    for processor in processors:
        processor.save_pretrained(folder)
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(_as_float32(json.loads(config_file.read_text())), indent=2) + "\n")


def _as_float32(config: dict[str, Any]) -> dict[str, Any]:
    """Set the dtype of a config and of those inside it, and leave out where they were loaded from."""
    config = {name: value for name, value in config.items() if name != "_name_or_path"}
    inner = {name: _as_float32(value) for name, value in config.items() if name.endswith("_config")}
    return {**config, **inner, "dtype": "float32"}


def arguments(description: str | None, out: Path, names: tuple[str, ...] = ()) -> argparse.Namespace:
    """Parse a training script's options, with which of several models to train, and set threads and seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if names:
        parser.add_argument("name", choices=names)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--threads", type=int, default=1, help="results are the same only for the same number")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    return args

"""Distillation: a merged student learns the logits of its unmerged teacher, and the features that the head reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, kl_div
from transformers import Trainer

TEMPERATURE = 2.0


class DistillationTrainer(Trainer):
    """A `Trainer` whose loss holds what the teacher says of the same images.

    To the loss of the labels it adds the divergence of the softened logits and, times `feature_weight`, one minus the
    cosine of what the two classifiers read: of a ViT the class token, after the last norm.
    """

    def __init__(self, *args: Any, teacher: nn.Module, feature_weight: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher, self.feature_weight = teacher.to(self.args.device), feature_weight
        self._taught, self._learned = _watch_head(teacher), _watch_head(self.model)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Return the loss of a batch."""
        outputs = model(**inputs)
        with torch.no_grad():
            taught = self.teacher(pixel_values=inputs["pixel_values"]).logits
        soft = kl_div(
            (outputs.logits / TEMPERATURE).log_softmax(-1),
            (taught / TEMPERATURE).log_softmax(-1),
            log_target=True,
            reduction="batchmean",
        )
        alike = cosine_similarity(self._learned[0], self._taught[0], dim=-1).mean()
        loss = outputs.loss + TEMPERATURE**2 * soft + self.feature_weight * (1 - alike)
        return (loss, outputs) if return_outputs else loss


def _watch_head(model: nn.Module) -> list[Tensor]:
    """Return a list whose entry is, after each forward pass, what the classifier read."""
    heads = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "classifier"]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no `classifier`, whose input is distilled.")
    features: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        features[:] = [args[0]]

    heads[0].register_forward_pre_hook(keep)
    return features

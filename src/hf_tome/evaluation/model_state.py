"""Evaluate a model unmerged and in evaluation mode, and restore its state afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn

from ..api import get_config, merged, remove
from ..config import format_config

logger = logging.getLogger(__name__)


@contextmanager
def plain_model(model: nn.Module) -> Iterator[list[str]]:
    """Take a merge out of a model and set it to evaluation mode; afterwards both are as they were.

    Yields what was done, in sentences for the results.
    """
    earlier, notes = get_config(model), []
    if earlier is not None:
        notes.append(
            f"the model was merged ({format_config(earlier)}); the merge was removed meanwhile and applied again"
        )
    training = [module for module in model.modules() if module.training]
    if training:
        notes.append("the model was in training mode; it was evaluated in evaluation mode and set back")
    for note in notes:
        logger.warning("%s.", note.capitalize())
    with merged(model, earlier) if earlier is not None else nullcontext():
        remove(model)
        model.eval()
        try:
            yield notes
        finally:
            for module in training:
                module.training = True

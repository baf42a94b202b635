"""Load the model that a task evaluates."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..hub.sources import is_folder, naming
from .options import JobOptions


def load_task_model(auto_class: Any, options: JobOptions, purpose: str) -> PreTrainedModel:
    """Load a model in a task's auto class, ready to run on the device.

    Raises:
        ValueError: the checkpoint lacks weights that the class needs, which transformers would make up at random.
        OSError: there is no such model.
    """
    is_folder(options.model, "model")  # a path that is none would be taken for a Hub id
    with naming(options.model, "model"):
        model, loading = auto_class.from_pretrained(
            options.model, dtype=options.dtype, output_loading_info=True, trust_remote_code=False
        )
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ValueError(
            f"{options.model} lacks weights of {type(model).__name__} ({missing}, ...), so it cannot {purpose}; "
            "give a model fine-tuned for that."
        )
    return model.to(options.device).eval()

"""`transformers serve`, with the merge config that is saved with a model, or that HF_TOME_CONFIG gives.

    python integrations/serve/transformers_serve.py MODEL --device cpu --port 8000
    HF_TOME_CONFIG=r=16 python integrations/serve/transformers_serve.py llava-hf/llava-1.5-7b-hf

It takes every option of `transformers serve`, which has no hook for this: its `ModelManager._load_model` calls plain
`from_pretrained`, which loads the model unmerged. So that method is extended here, for this process alone.
"""

from __future__ import annotations

import os
from typing import Any

import typer
from transformers.cli.serve import Serve
from transformers.cli.serving import model_manager

import hf_tome
from hf_tome.config import parse_config
from hf_tome.hub.save_load import find_merge_config


class MergingModelManager(model_manager.ModelManager):
    """Loads models as `transformers serve` does, and merges their tokens."""

    def _load_model(self, model_name: str, *args: Any, **kwargs: Any) -> Any:
        model = super()._load_model(model_name, *args, **kwargs)
        model_id, revision = split_revision(model_name)
        config_text = os.environ.get("HF_TOME_CONFIG")
        if config_text:
            return hf_tome.apply(model, parse_config(config_text))
        merge_config = find_merge_config(model_id, model.config, revision=revision)
        return model if merge_config is None else hf_tome.apply(model, merge_config)


def split_revision(model_name: str) -> tuple[str, str | None]:
    """Split `model@revision`; transformers 5.23 writes a revision after folders too, 5.24 after Hub ids alone."""
    if "@" not in model_name or os.path.exists(model_name):
        return model_name, None
    model_id, revision = model_name.rsplit("@", 1)
    return model_id, revision


def serve(manager: type = MergingModelManager) -> type:
    """Return the command of `transformers serve`, with a manager of ours."""
    model_manager.ModelManager = manager  # `Serve` looks it up when it starts
    return Serve


if __name__ == "__main__":
    app = typer.Typer()
    app.command()(serve())
    app()

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

    def _load_model(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> Any:
        model = super()._load_model(model_id_and_revision, *args, **kwargs)
        model_id, revision = model_id_and_revision.split("@", 1)
        given = os.environ.get("HF_TOME_CONFIG")
        chosen = parse_config(given) if given else find_merge_config(model_id, model.config, revision=revision)
        return model if chosen is None else hf_tome.apply(model, chosen)


def serve(manager: type = MergingModelManager) -> type:
    """Return the command of `transformers serve`, with a manager of ours."""
    model_manager.ModelManager = manager  # `Serve` looks it up when it starts
    return Serve


if __name__ == "__main__":
    app = typer.Typer()
    app.command()(serve())
    app()

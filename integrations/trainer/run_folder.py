"""The folder of a run: begun once, resumed with the settings it was begun with, never overwritten."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from hf_tome.files import write_whole
from hf_tome.training.settings import describe_changes

SETTINGS = "recipe.json"


class RunError(ValueError):
    """A run that cannot begin or go on in its folder."""


def check_folder(folder: Path, settings: Mapping[str, Any], resume: bool) -> str | None:
    """Return the checkpoint from which a run goes on, `None` where it begins.

    Raises:
        RunError: the folder holds something else, or a run with other settings.
    """
    path = folder / SETTINGS
    if not resume:
        if folder.is_dir() and any(folder.iterdir()):
            hint = "go on with --resume, or " if path.is_file() else ""
            raise RunError(f"{folder} is not empty, and nothing in it is overwritten: {hint}choose another --out.")
        return None
    if not path.is_file():
        raise RunError(f"There is no run in {folder} to resume (no {SETTINGS}). Leave out --resume, or mend --out.")
    before = json.loads(path.read_text(encoding="utf-8"))["settings"]
    changes = describe_changes(settings, before)
    if changes:
        raise RunError(
            f"The run in {folder} was begun with other settings: {changes}. Resume it with the same ones, or begin "
            "another with another --out."
        )
    return get_last_checkpoint(str(folder))


def write_settings(folder: Path, settings: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Write with which settings a run begins, and what was measured before it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SETTINGS, json.dumps({"settings": settings, "before": before}, indent=1) + "\n")


def read_before(folder: Path) -> dict[str, Any]:
    """Return what was measured before the run."""
    return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["before"]

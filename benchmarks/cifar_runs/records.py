"""Files of the work folder: what was measured, with the settings that it was measured with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_tome.files import write_whole
from hf_tome.training.settings import describe_changes

from .data import Images
from .runs import BATCH_SIZE, DECAY_SHARE, WARMUP_EPOCHS, Run


def weights_path(folder: Path, name: str, seed: int) -> Path:
    """Return where the weights of a run that has ended are."""
    return folder / f"{name}-{seed}.pt"


def checkpoint_path(folder: Path, name: str, seed: int) -> Path:
    """Return where a run is kept that has not ended."""
    return folder / f"{name}-{seed}.checkpoint"


def read_record(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what was measured before with these settings, or `None` where nothing was.

    Raises:
        SystemExit: it was measured with other settings.
    """
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    check_settings(path, settings, record["settings"])
    return record


def check_settings(path: Path, settings: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raise a `SystemExit` where a file was written with other settings."""
    changes = describe_changes(settings, before)
    if changes:
        raise SystemExit(
            f"{path} was written with other settings: {changes}. Choose another --work folder, or delete that file."
        )


def settings_of(run: Run, seed: int, images: Images) -> dict[str, Any]:
    """Return what a run depends on."""
    sizes = {"images": len(images.train_labels), "test_images": len(images.test_labels), "batch_size": BATCH_SIZE}
    return {**run.describe(), **sizes, "schedule": [WARMUP_EPOCHS, DECAY_SHARE], "seed": seed}


def stored_record(run: Run, seed: int, images: Images, folder: Path) -> dict[str, Any] | None:
    """Return the record of a run that has ended, or `None`."""
    return read_record(folder / f"{run.name}-{seed}.json", settings_of(run, seed, images))


def stored(path: Path, settings: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured before with these settings, or measure and keep it."""
    record = read_record(path, settings)
    if record is None:
        record = {"settings": settings, **measure()}
        write_whole(path, json.dumps(record, indent=1) + "\n")
    return record

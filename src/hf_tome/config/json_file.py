"""A merge config as a JSON file: its name and format, finding it in folders and on the Hub, reading and writing it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError

CONFIG_NAME = "merge_config.json"
FORMAT_VERSION = 1
"""Raised when an older `hf_tome` could no longer read what a newer one writes."""


def check_version(version: Any) -> None:
    """Raise a ValueError where a file's format is newer than this version reads, or is no number."""
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"The merge config has format_version {version!r}; it takes an integer of at least 1.")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"The merge config has format_version {version!r}; this hf_tome reads up to {FORMAT_VERSION}. "
            "Update it with `pip install -U hf_tome`."
        )


def to_json(values: Mapping[str, Any]) -> bytes:
    """Return the fields as the content of a file."""
    text = json.dumps({"format_version": FORMAT_VERSION, **values}, indent=2)
    return f"{text}\n".encode()


def read_json(path: Path) -> Any:
    """Return what a config's file holds.

    Raises:
        ValueError: it is not valid JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    except RecursionError:
        raise ValueError(f"{path} is no merge config: its JSON is nested too deeply.") from None


def find_config_file(id_or_dir: str | Path, hub_kwargs: dict[str, Any]) -> Path:
    """Return the path of a config's file in a folder, itself, or downloaded from the Hub.

    Raises:
        OSError: there is no such file.
    """
    path = Path(id_or_dir)
    if path.is_file():
        return path
    if path.is_dir():
        path = path / (hub_kwargs.get("subfolder") or "") / CONFIG_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"No {CONFIG_NAME} in {path.parent}; write one with `MergeConfig.save_pretrained`."
            )
        return path
    try:
        return Path(hf_hub_download(str(id_or_dir), CONFIG_NAME, **hub_kwargs))
    except HFValidationError:
        raise FileNotFoundError(f"{str(id_or_dir)!r} is neither a folder, a file nor a Hub id.") from None

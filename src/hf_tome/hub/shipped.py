"""The small models that ship with the package; each is loaded by the name of its folder."""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent / "demo" / "weights"
"""A folder for each model."""


def shipped_model(source: str) -> str:
    """Return the folder of the shipped model of that name; any other name, and a local folder, as it is.

    `digits-vit` is a shipped model unless the working directory has a folder of that name.
    """
    folder = MODELS / source
    is_name = source not in ("", ".", "..") and Path(source).name == source
    return str(folder) if is_name and folder.is_dir() and not Path(source).is_dir() else source

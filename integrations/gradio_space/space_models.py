"""The models of the page: those that ship with hf_tome, and models of the Hub; never folders of the server."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

import hf_tome

EMBEDDED = Path(hf_tome.__file__).parent / "demo" / "weights"
FIRST = "digits-clip"
DENOISER = "digits-dit"
"""The model of the tab of diffusion."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
SUFFIXES = (".json", ".safetensors", ".txt", ".model")
"""Of the files that are fetched: no pickles and no code."""
DOWNLOAD_BYTES = int(os.environ.get("HF_TOME_DOWNLOAD_BYTES", 2_000_000_000))
"""Most bytes that are fetched of one model."""
SECONDS = 20
"""To wait for the Hub's list of files."""


def embedded_models() -> dict[str, str]:
    """Return the encoders that ship with hf_tome, `FIRST` before the others: name -> folder."""
    files = (file for file in sorted(EMBEDDED.glob("*/config.json")) if file.parent.name != DENOISER)
    folders = {file.parent.name: str(file.parent) for file in files}
    return {FIRST: folders[FIRST], **folders}


def model_folder(name: str) -> str:
    """Return the folder of an embedded model, or of one that is fetched from the Hub.

    Raises:
        ValueError: there is no such model, or it is too large. Whatever else lies on the server, such as a folder of
            that name, makes no difference.
    """
    embedded = embedded_models()
    if name in embedded:
        return embedded[name]
    unknown = ValueError(
        f"{name[:200]!r} is neither a model of this page nor one that can be fetched from the Hub; pick a model, or "
        "type a Hub id such as facebook/deit-tiny-patch16-224."
    )
    if not HUB_ID.fullmatch(name):
        raise unknown
    try:
        info: Any = HfApi().model_info(name, files_metadata=True, timeout=SECONDS, token=False)
    except Exception as error:  # the Hub's errors tell the missing from the private, which is not for visitors
        raise unknown from error
    files = {file.rfilename: file.size or 0 for file in info.siblings or () if _is_fetched(file.rfilename)}
    size = sum(files.values())
    if size > DOWNLOAD_BYTES:
        raise ValueError(f"{name} has {size} bytes of weights and settings; this page takes at most {DOWNLOAD_BYTES}.")
    try:
        return snapshot_download(name, revision=info.sha, allow_patterns=list(files), token=False)
    except Exception as error:
        raise unknown from error


def _is_fetched(file: str) -> bool:
    return "/" not in file and file.endswith(SUFFIXES)

"""The errors that are hf_tome's own."""

from __future__ import annotations

import transformers

from .version import __version__


class UnsupportedModelError(ValueError):
    """A model, backbone, head or attention backend in which tokens cannot be merged, or not yet.

    Its text ends with the versions of hf_tome and transformers, which an issue needs.
    """

    def __str__(self) -> str:
        return f"{super().__str__()} (hf_tome {__version__}, transformers {transformers.__version__})"

"""Which extra of the package brings a module that is not installed."""

from __future__ import annotations

EXTRAS = {
    "PIL": "eval",
    "accelerate": "eval",
    "av": "video",
    "datasets": "eval",
    "diffusers": "diffusion",
    "evaluate": "eval",
    "matplotlib": "eval",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "pycocoevalcap": "captions",
    "scipy": "eval",
    "sklearn": "eval",
    "torchmetrics": "fid",
}
"""Module -> extra, of what the package imports only where it is used."""


def advice(error: Exception) -> str:
    """Return the sentence that says how to install what an import did not find, or nothing."""
    module = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extra = EXTRAS.get(module)
    return f"This needs the extra {extra!r}: pip install 'hf_tome[{extra}]'" if extra else ""

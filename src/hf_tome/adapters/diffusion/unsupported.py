"""Why tokens do not merge in the other denoisers of diffusers."""

from __future__ import annotations

from torch import nn

from .denoisers import DENOISERS

_CONVOLUTIONS = "its blocks mix neighbouring tokens by convolution, which merged tokens have none of"
_NO_ROW = "no row has passed the permutation test for it"

UNSUPPORTED: dict[str, str] = {
    "SanaTransformer2DModel": f"its attention is linear, and {_CONVOLUTIONS}",
    "SanaVideoTransformer3DModel": f"its attention is linear, and {_CONVOLUTIONS}",
    "Kandinsky3UNet": "its attention blocks read the grid of the feature map",
    "StableCascadeUNet": "its attention blocks read the grid of the feature map",
    "UNet2DModel": "its few attention blocks read the grid of the feature map, and convolutions take most of the time",
    "UNet3DConditionModel": "its blocks attend over frames too, at 16 tokens or so",
    "UNetMotionModel": "its blocks attend over frames too, at 16 tokens or so",
    "UNetSpatioTemporalConditionModel": "its blocks attend over frames too, at 25 tokens or so",
}
"""By class name of the denoiser."""


def reason_of(root: nn.Module) -> str:
    """Return why nothing can merge in a model of diffusers, what is supported and what to do."""
    names = [type(module).__name__ for module in root.modules()]
    known = next((name for name in names if name in UNSUPPORTED), names[0])
    return (
        f"Found no denoiser to merge tokens in: {known} is not supported, because {UNSUPPORTED.get(known, _NO_ROW)}. "
        f"Supported are {', '.join(sorted(DENOISERS))}."
    )

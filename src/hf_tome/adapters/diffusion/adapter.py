"""The adapter for denoisers of diffusers."""

from __future__ import annotations

import sys

from packaging.version import Version
from torch import nn

from ...config import MergeConfig
from ...errors import UnsupportedModelError
from ...patching.patch import own_class
from ...patching.plans import Target
from ..choice import chosen_towers
from .denoisers import DENOISERS
from .plan import plan_denoiser
from .unsupported import reason_of

OLDEST = "0.42"
"""The first version of diffusers whose blocks the rows describe."""


class DiffusionAdapter:
    """Merges in the blocks of a denoiser, and unmerges all tokens after each."""

    name = "diffusion"
    places = ("denoiser",)

    def finds(self, root: nn.Module) -> bool:
        """Return whether a model is a denoiser of diffusers that has a row, or holds one."""
        return any(_is_denoiser(module) for module in root.modules())

    def plan(self, root: nn.Module, config: MergeConfig) -> list[Target]:
        """Plan merging in every denoiser of a model or a pipeline.

        Raises:
            UnsupportedModelError: its blocks cannot take merged tokens as the config asks.
            ValueError: the config does not fit.
        """
        _check_version()
        denoisers = [(path, module) for path, module in root.named_modules() if _is_denoiser(module)]
        return [
            plan_denoiser(path, module, DENOISERS[own_class(module).__name__], config)
            for path, module in chosen_towers(denoisers, config)
        ]

    def reason(self, root: nn.Module) -> str | None:
        """Return why nothing can merge in a model of diffusers; `None` for others."""
        if not any(_is_from_diffusers(module) for module in root.modules()):
            return None
        return reason_of(root)


def _check_version() -> None:
    installed = sys.modules["diffusers"].__version__
    if Version(installed) < Version(OLDEST):
        raise UnsupportedModelError(
            f"diffusers {installed} is installed, whose blocks are other than those that hf_tome knows; it takes "
            f"{OLDEST} or later. pip install --upgrade 'hf_tome[diffusion]'"
        )


def _is_from_diffusers(module: nn.Module) -> bool:
    return own_class(module).__module__.partition(".")[0] == "diffusers"


def _is_denoiser(module: nn.Module) -> bool:
    return _is_from_diffusers(module) and own_class(module).__name__ in DENOISERS

"""What an adapter is: the knowledge of where merging fits in models that somebody else wrote."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from ..config import MergeConfig
from ..patching.plans import Target


class Adapter(Protocol):
    """One kind of place to merge in; `api.ADAPTERS` lists all of them."""

    @property
    def name(self) -> str:
        """The folder in `adapters/`."""
        ...

    @property
    def places(self) -> tuple[str, ...]:
        """The values of `MergeConfig.where` that it serves, apart from `"auto"`."""
        ...

    def finds(self, root: nn.Module) -> bool:
        """Return whether a model is one that this adapter plans for; of several the first in `api.ADAPTERS` does."""
        ...

    def plan(self, root: nn.Module, config: MergeConfig) -> list[Target]:
        """Plan merging for a model in which `finds`; nothing is touched.

        Raises:
            UnsupportedModelError: something in the model cannot take merged tokens.
            ValueError: the config does not fit the model.
        """
        ...

    def reason(self, root: nn.Module) -> str | None:
        """Return why there is nothing to merge in a model, what is supported and what to do; `None`: no idea."""
        ...

"""The adapter for key-value caches of language models."""

from __future__ import annotations

from torch import nn

from ...config import MergeConfig
from ...patching.patch import own_class
from ...patching.plans import Target
from .families import FAMILIES
from .plan import plan_cache
from .unsupported import reason_of


class CacheAdapter:
    """Merges the entries of the cache of a decoder, alone or inside a vision-language model."""

    name = "kv_cache"
    places = ("cache",)

    def finds(self, root: nn.Module) -> bool:
        """Return whether a model is a decoder that has a row, or holds one."""
        return any(_is_decoder(module) for module in root.modules())

    def plan(self, root: nn.Module, config: MergeConfig) -> list[Target]:
        """Plan merging in the cache of every decoder of a model.

        Raises:
            UnsupportedModelError: entries of its cache cannot merge.
            ValueError: the config does not fit.
        """
        decoders = [(path, module) for path, module in root.named_modules() if _is_decoder(module)]
        return [plan_cache(path, module, FAMILIES[own_class(module).__name__], config) for path, module in decoders]

    def reason(self, root: nn.Module) -> str | None:
        """Return why no cache merges in a model; see `Adapter`."""
        return reason_of(root)


def _is_decoder(module: nn.Module) -> bool:
    cls = own_class(module)
    return cls.__name__ in FAMILIES and cls.__module__.partition(".")[0] == "transformers"

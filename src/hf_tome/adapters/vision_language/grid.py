"""Vision-language models that need the grid of their tower's tokens: it is back from the first feature layer on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...patching.patch import PatchedModel, context_of
from .call_args import arguments
from .features import read_layers


class GridLayers(PatchedModel):
    """A model that may be told, call by call, which layers of its tower to read."""

    methods: tuple[str, ...] = ("get_image_features",)

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return image features as the model makes them.

        Raises:
            ValueError: of a layer before the grid is back.
        """
        return self._on_grid(super().get_image_features, args, kwargs)

    def _on_grid(self, method: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        plan = context_of(self).target.plan
        layers = arguments(method, args, kwargs).get("vision_feature_layer")
        if layers is not None and any(plan.merging):
            reads = read_layers(self, self.config.vision_config.num_hidden_layers, layers)
            if min(reads) < plan.num_layers:
                raise ValueError(
                    f"`vision_feature_layer` is {layers!r} in this call, but the tokens of {type(self).__name__}'s "
                    f"tower were to merge before block {plan.num_layers}, from which the model's config reads them, "
                    "and have no grid earlier. Set `model.config.vision_feature_layer` and call `hf_tome.apply` again."
                )
        return method(*args, **kwargs)


class GridVideoLayers(GridLayers):
    """The same of a model that takes videos too."""

    methods = ("get_image_features", "get_video_features")

    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return video features as the model makes them (see `get_image_features`)."""
        return self._on_grid(super().get_video_features, args, kwargs)

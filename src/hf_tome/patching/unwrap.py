"""The model inside a pipeline, a compiled model, a PEFT model or a parallel wrapper."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import UnsupportedModelError

PIPELINES: dict[str, tuple[str, ...]] = {
    "Pipeline": ("model",),  # transformers
    "DiffusionPipeline": ("transformer", "transformer_2", "unet", "controlnet"),  # diffusers
}
"""By class name of a pipeline, the attributes that may hold models whose tokens merge."""

PARALLEL = ("DataParallel", "DistributedDataParallel")


def unwrap(model: Any) -> Any:
    """Return the model inside a pipeline, a compiled model, a PEFT model or a parallel wrapper.

    Raises:
        TypeError: there is no model.
    """
    module = _model_of(model)
    while isinstance(module, nn.Module):
        if "_orig_mod" in module._modules:  # torch.compile
            module = module._orig_mod
        elif type(module).__name__ in PARALLEL:
            module = module.module
        elif hasattr(module, "get_base_model"):  # PEFT
            module = module.get_base_model()  # type: ignore[operator]
        else:
            return module
    raise TypeError(f"`model` is a {type(model).__name__}; it takes a model of transformers or timm, or a pipeline.")


class Models(nn.Module):
    """The models of a pipeline that has several, by their names in it."""


def _model_of(model: Any) -> Any:
    """Return the model of a pipeline, which is recognised by its class's name so that nothing need be imported.

    Raises:
        UnsupportedModelError: the pipeline has no model whose tokens could merge.
    """
    if isinstance(model, nn.Module):
        return model
    attributes = next((PIPELINES[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in PIPELINES), ())
    models = {name: getattr(model, name, None) for name in attributes}
    models = {name: part for name, part in models.items() if isinstance(part, nn.Module)}
    if attributes and not models:
        raise UnsupportedModelError(
            f"A {type(model).__name__} has none of {', '.join(map(repr, attributes))}, in which tokens could merge. "
            "Call `hf_tome.apply` on the model that takes the time."
        )
    if len(models) < 2:
        return next(iter(models.values()), model)
    together = Models()
    for name, part in models.items():
        together.add_module(name, part)
    return together

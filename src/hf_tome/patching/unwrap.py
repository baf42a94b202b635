"""The model inside a pipeline, a compiled model, a PEFT model or a parallel wrapper."""

from __future__ import annotations

from typing import Any

from torch import nn

PIPELINES: dict[str, tuple[str, ...]] = {
    "Pipeline": ("model",),  # transformers
    "DiffusionPipeline": ("transformer", "unet"),  # diffusers
}
"""By class name of a pipeline, the attributes that may hold the model whose tokens merge."""

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
            module = module.get_base_model()
        else:
            return module
    raise TypeError(f"`model` is a {type(model).__name__}; it takes a model of transformers or timm, or a pipeline.")


def _model_of(model: Any) -> Any:
    """Return the model of a pipeline, which is recognised by its class's name so that nothing need be imported."""
    for cls in () if isinstance(model, nn.Module) else type(model).__mro__:
        for attribute in PIPELINES.get(cls.__name__, ()):
            if getattr(model, attribute, None) is not None:
                return getattr(model, attribute)
    return model

"""Make transformers' Auto classes know the models of this package, when asked to."""

from __future__ import annotations

from .mame_swin import MameSwinConfig, MameSwinForImageClassification, MameSwinModel


def register_auto_classes() -> None:
    """Let `AutoConfig`, `AutoModel` and `AutoModelForImageClassification` load the models."""
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    AutoConfig.register(MameSwinConfig.model_type, MameSwinConfig, exist_ok=True)
    AutoModel.register(MameSwinConfig, MameSwinModel, exist_ok=True)
    AutoModelForImageClassification.register(MameSwinConfig, MameSwinForImageClassification, exist_ok=True)

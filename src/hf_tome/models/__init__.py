"""Models of transformers' kind with merging built in; they are trained as such, so nothing is applied to them.

Importing this changes nothing in transformers: `register_auto_classes()` makes its Auto classes know the models.
"""

from .mame_swin import MameSwinConfig, MameSwinForImageClassification, MameSwinModel
from .registration import register_auto_classes
from .swin_flops import swin_gflops

__all__ = [
    "MameSwinConfig",
    "MameSwinForImageClassification",
    "MameSwinModel",
    "register_auto_classes",
    "swin_gflops",
]

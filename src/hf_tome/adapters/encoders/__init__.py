"""Plain vision and audio encoders of transformers and timm: merged tokens are carried from block to block."""

from .families import CLIP, DINOV2, SIGLIP, VIT, register_family
from .family import CLASS_TOKEN, TOKENS, UNMERGE, Family, OutputAdapter
from .outputs import attention_pool, mean_of

__all__ = [
    "CLASS_TOKEN",
    "CLIP",
    "DINOV2",
    "SIGLIP",
    "TOKENS",
    "UNMERGE",
    "VIT",
    "Family",
    "OutputAdapter",
    "attention_pool",
    "mean_of",
    "register_family",
]

"""Plain vision and audio encoders of transformers and timm: merged tokens are carried from block to block."""

from .families.family import CLASS_TOKEN, TOKENS, UNMERGE, Family, OutputAdapter
from .families.inputs import InputFormat
from .families.registry import register_family
from .families.sizes import Sizes
from .outputs import attention_pool, mean_of
from .rows.image_text import CLIP, SIGLIP
from .rows.images import DINOV2, VIT

__all__ = [
    "CLASS_TOKEN",
    "CLIP",
    "DINOV2",
    "SIGLIP",
    "TOKENS",
    "UNMERGE",
    "VIT",
    "Family",
    "InputFormat",
    "OutputAdapter",
    "Sizes",
    "attention_pool",
    "mean_of",
    "register_family",
]

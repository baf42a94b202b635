"""Plain vision and audio encoders of transformers and timm: merged tokens are carried from block to block."""

from .families import register_family
from .family import CLASS_TOKEN, TOKENS, UNMERGE, Family, OutputAdapter
from .inputs import InputFormat
from .outputs import attention_pool, mean_of
from .rows.image_text import CLIP, SIGLIP
from .rows.images import DINOV2, VIT
from .sizes import Sizes

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

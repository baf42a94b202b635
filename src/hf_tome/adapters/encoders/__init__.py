"""Plain vision and audio encoders of transformers and timm: merged tokens are carried from block to block."""

from .families import register_family
from .family import Family, OutputAdapter

__all__ = ["Family", "OutputAdapter", "register_family"]

"""Token merging (ToMe, MaMe) for Hugging Face vision, video and audio transformers."""

from .config import MergeConfig
from .version import __version__

__all__ = ["MergeConfig", "__version__"]

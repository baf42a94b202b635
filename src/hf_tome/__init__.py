"""Token merging (ToMe, MaMe) for Hugging Face vision, video and audio transformers."""

from .apply import apply, remove
from .config import MergeConfig
from .errors import UnsupportedModelError
from .trace import Trace, trace
from .version import __version__

__all__ = ["MergeConfig", "Trace", "UnsupportedModelError", "__version__", "apply", "remove", "trace"]

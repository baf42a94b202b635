"""Token merging (ToMe, MaMe) for Hugging Face vision, video and audio transformers."""

from .apply import apply, remove
from .config import MergeConfig
from .errors import UnsupportedModelError
from .hub import from_pretrained, save_pretrained
from .report import Report, report
from .trace import Trace, trace
from .version import __version__

__all__ = [
    "MergeConfig",
    "Report",
    "Trace",
    "UnsupportedModelError",
    "__version__",
    "apply",
    "from_pretrained",
    "remove",
    "report",
    "save_pretrained",
    "trace",
]

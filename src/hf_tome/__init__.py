"""Token merging (ToMe, MaMe) for Hugging Face vision, video and audio transformers."""

from typing import TYPE_CHECKING, Any

from .api import apply, remove
from .config import MergeConfig
from .errors import UnsupportedModelError
from .hub.save_load import from_pretrained, save_pretrained
from .inspection.reports import Report, report
from .inspection.tracing import Trace, trace
from .version import __version__

if TYPE_CHECKING:
    from .pipelines import pipeline

__all__ = [
    "MergeConfig",
    "Report",
    "Trace",
    "UnsupportedModelError",
    "__version__",
    "apply",
    "from_pretrained",
    "pipeline",
    "remove",
    "report",
    "save_pretrained",
    "trace",
]


def __getattr__(name: str) -> Any:
    # Pipelines bring decoders of images and videos along; whoever applies merging to a model does not wait for them.
    if name == "pipeline":
        from .pipelines import pipeline

        return pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Token merging (ToMe, MaMe) for Hugging Face vision, video and audio transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .adapters.encoders.families.registry import register_family
    from .api import apply, get_config, is_merged, merged, remove
    from .config import MergeConfig
    from .errors import UnsupportedModelError
    from .evaluation.functions import benchmark, evaluate, sweep, tune
    from .evaluation.tasks.registry import register_task
    from .hub.save_load import from_pretrained, save_pretrained
    from .inspection.reports import Report, report
    from .inspection.tracing import Trace, trace
    from .merging.methods import register_method
    from .pipelines import pipeline
    from .training.callback import MergeCallback
    from .training.schedule import MergeSchedule
    from .verbosity import (
        get_verbosity,
        set_verbosity,
        set_verbosity_debug,
        set_verbosity_error,
        set_verbosity_info,
        set_verbosity_warning,
    )
    from .visualize.show import show

__all__ = [
    "MergeCallback",
    "MergeConfig",
    "MergeSchedule",
    "Report",
    "Trace",
    "UnsupportedModelError",
    "__version__",
    "apply",
    "benchmark",
    "evaluate",
    "from_pretrained",
    "get_config",
    "get_verbosity",
    "is_merged",
    "merged",
    "pipeline",
    "register_family",
    "register_method",
    "register_task",
    "remove",
    "report",
    "save_pretrained",
    "set_verbosity",
    "set_verbosity_debug",
    "set_verbosity_error",
    "set_verbosity_info",
    "set_verbosity_warning",
    "show",
    "sweep",
    "trace",
    "tune",
]

# Imported when first used, so that `hf-tome --help` does not wait for torch and transformers.
# Every name stands under TYPE_CHECKING above too, for type checkers and editors.
_DEFINED_IN = {
    "MergeCallback": "training.callback",
    "MergeConfig": "config",
    "MergeSchedule": "training.schedule",
    "Report": "inspection.reports",
    "Trace": "inspection.tracing",
    "UnsupportedModelError": "errors",
    "apply": "api",
    "benchmark": "evaluation.functions",
    "evaluate": "evaluation.functions",
    "from_pretrained": "hub.save_load",
    "get_config": "api",
    "get_verbosity": "verbosity",
    "is_merged": "api",
    "merged": "api",
    "pipeline": "pipelines",
    "register_family": "adapters.encoders.families.registry",
    "register_method": "merging.methods",
    "register_task": "evaluation.tasks.registry",
    "remove": "api",
    "report": "inspection.reports",
    "save_pretrained": "hub.save_load",
    "set_verbosity": "verbosity",
    "set_verbosity_debug": "verbosity",
    "set_verbosity_error": "verbosity",
    "set_verbosity_info": "verbosity",
    "set_verbosity_warning": "verbosity",
    "show": "visualize.show",
    "sweep": "evaluation.functions",
    "trace": "inspection.tracing",
    "tune": "evaluation.functions",
}
_SUBMODULES = ("adapters", "api", "config", "errors", "hub", "inspection", "merging", "models", "patching", "training")
"""Submodules that are there as attributes after `import hf_tome`, without an import of their own."""


def __getattr__(name: str) -> Any:
    if name in _DEFINED_IN:
        value = getattr(import_module(f".{_DEFINED_IN[name]}", __name__), name)
    elif name in _SUBMODULES:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})

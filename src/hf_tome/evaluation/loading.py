"""Load the model and the processor that a task evaluates, or check those that the caller has loaded."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    FeatureExtractionMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.image_processing_utils import BaseImageProcessor

from ..hub.sources import is_folder, naming
from .options import JobOptions

PROCESSORS: dict[Any, tuple[str, type, str]] = {
    AutoImageProcessor: ("image_processor", BaseImageProcessor, "an image processor"),
    AutoFeatureExtractor: ("feature_extractor", FeatureExtractionMixin, "a feature extractor"),
    AutoTokenizer: ("tokenizer", PreTrainedTokenizerBase, "a tokenizer"),
    AutoProcessor: ("", ProcessorMixin, "a processor of images and text"),
}
"""By auto class: where a composite processor holds it, its base class, and what it is called in errors."""


def load_task_model(auto_class: Any, options: JobOptions, purpose: str) -> PreTrainedModel:
    """Load a model in a task's auto class, ready to run on the device; a model in memory stays where it is.

    Raises:
        ValueError: the checkpoint lacks weights that the class needs, which transformers would make up at random, or
            the model in memory is of another class.
        OSError: there is no such model.
    """
    if options.loaded is not None:
        return _check_loaded(auto_class, options.loaded, purpose)
    is_folder(options.model, "model")  # a path that is none would be taken for a Hub id
    with naming(options.model, "model"):
        model, loading = auto_class.from_pretrained(
            options.model, dtype=options.dtype, output_loading_info=True, trust_remote_code=False
        )
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ValueError(
            f"{options.model} lacks weights of {type(model).__name__} ({missing}, ...), so it cannot {purpose}; "
            "give a model fine-tuned for that."
        )
    return model.to(options.device).eval()


def load_processor(auto_class: Any, options: JobOptions) -> Any:
    """Return the processor of a kind, a key of `PROCESSORS`: the caller's or its part, or the one beside the model.

    Raises:
        ValueError: the caller's is of another kind, or there is none beside the model.
        OSError: the model has no such processor.
    """
    part, base, words = PROCESSORS[auto_class]
    given = options.processor
    if given is not None:
        processor_part = getattr(given, part, given) if part else given
        if not isinstance(processor_part, base):
            raise ValueError(f"`processor` is a {type(given).__name__}; this task takes {words} of transformers.")
        return processor_part
    try:
        with naming(options.model, "processor of the model"):
            return auto_class.from_pretrained(options.model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if options.loaded is None:
            raise
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"There is no processor where the model came from ({options.model}); pass {words} as `processor=`. "
            f"({first})"
        ) from error


def _check_loaded(auto_class: Any, model: PreTrainedModel, purpose: str) -> PreTrainedModel:
    """Return the model, unless the auto class would load its checkpoint as another class."""
    mapping, config = auto_class._model_mapping, type(model.config)
    expected = mapping.get(config, ())
    classes = expected if isinstance(expected, tuple) else (expected,)
    is_own_class = type(model).__module__.partition(".")[0] != "transformers"  # what it does is its author's affair
    if not is_own_class and not isinstance(model, classes):
        how = f"; load it with {auto_class.__name__}" if classes else ""
        raise ValueError(f"A {type(model).__name__} cannot {purpose}{how}.")
    return model

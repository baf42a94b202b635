"""What the dense tasks run and keep of a model's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ...data.samples import Sample
from ...job import Inputs
from ...loading import load_processor
from ...metrics.maps import Outputs
from ...options import JobOptions


@dataclass(frozen=True)
class DenseRun:
    """One forward; what is timed.

    Attributes:
        names: the outputs to keep, where the model has them.
        compared: the outputs to the tensor by which a search compares configs (see `Job.outputs`).
    """

    names: tuple[str, ...]
    compared: Callable[[Outputs], Tensor]

    def __call__(self, model: PreTrainedModel, inputs: Inputs) -> Outputs:
        """Return the outputs that post-processing reads, a row a sample each."""
        out = model(**inputs)
        return {name: out[name] for name in self.names if out.get(name) is not None}

    def logits(self, model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """Return what a search compares."""
        return self.compared(self(model, inputs))


def load_post_processor(auto_class: Any, options: JobOptions, method: str) -> Any:
    """Return an image processor that has a method of post-processing.

    Raises:
        ValueError: it has none.
        OSError: there is no processor.
    """
    processor = load_processor(auto_class, options)
    if not hasattr(processor, method):
        raise ValueError(
            f"{type(processor).__name__} has no {method}(), so its model's outputs cannot be scored; give the "
            "processor of a model of this task as `processor=`, or save one beside the model."
        )
    return processor


def centred(outputs: Outputs) -> Tensor:
    """Return maps of depth (B, places) without their means, whose cosine is a correlation."""
    values = outputs["predicted_depth"].flatten(1)
    return values - values.mean(dim=1, keepdim=True)


def prepare_images(processor: Any) -> Callable[[Sequence[Sample]], Inputs]:
    """Return the function that makes model inputs of the images of samples."""

    def prepare(samples: Sequence[Sample]) -> Inputs:
        return dict(processor(images=[sample.content.image for sample in samples], return_tensors="pt"))

    return prepare

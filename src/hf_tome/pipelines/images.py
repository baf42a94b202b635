"""Pipelines that read images: within limits, and converted to RGB by what their modes mean."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.pipelines.depth_estimation import DepthEstimationPipeline
from transformers.pipelines.image_classification import ImageClassificationPipeline
from transformers.pipelines.image_feature_extraction import ImageFeatureExtractionPipeline
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline
from transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
from transformers.pipelines.object_detection import ObjectDetectionPipeline
from transformers.pipelines.zero_shot_image_classification import ZeroShotImageClassificationPipeline
from transformers.pipelines.zero_shot_object_detection import ZeroShotObjectDetectionPipeline

from ..api import targets
from ..media.chats import open_images, open_messages
from ..media.limits import DEFAULT_LIMITS, MediaLimits
from ..media.links import open_linked_image
from .limited import LimitsMedia

USUAL_RATE = 16_000
"""Samples per second of sound in chats, where no feature extractor says; transformers' own default."""


class ReadsImages(LimitsMedia):
    """Reads images within limits, and converts them to RGB by what their modes mean; see `read_image`."""

    def preprocess(self, image: Any, media_limits: MediaLimits = DEFAULT_LIMITS, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the model's inputs for one image.

        Raises:
            ImageError, MediaLimitError: it cannot be read, or is too large.
        """
        plain: Any = super().preprocess  # type: ignore[safe-super]
        return plain(open_linked_image(image, media_limits, kwargs.get("timeout")), **kwargs)


class LimitedImagePipeline(ReadsImages, ImageClassificationPipeline):  # type: ignore[misc]
    """Image classification that checks an image before it decodes it."""


def _check_labels(labels: Any) -> None:
    """Raise a `ValueError` where there are no texts to compare an image with."""
    if not isinstance(labels, (str, list, tuple)) or not labels:
        raise ValueError(f"`candidate_labels` is {labels!r}; it takes at least one text, as in ['a cat', 'a dog'].")


class LimitedZeroShotPipeline(ReadsImages, ZeroShotImageClassificationPipeline):  # type: ignore[misc]
    """Zero-shot image classification that checks an image before it decodes it."""

    def preprocess(self, image: Any, *args: Any, candidate_labels: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the model's inputs for one image and its labels (see the base class).

        Raises:
            ValueError: there is no label.
        """
        _check_labels(candidate_labels)
        return super().preprocess(image, *args, candidate_labels=candidate_labels, **kwargs)


class LimitedDepthPipeline(ReadsImages, DepthEstimationPipeline):  # type: ignore[misc]
    """Depth estimation that checks an image before it decodes it."""


class LimitedSegmentationPipeline(ReadsImages, ImageSegmentationPipeline):  # type: ignore[misc]
    """Segmentation that checks an image before it decodes it."""


class LimitedDetectionPipeline(ReadsImages, ObjectDetectionPipeline):  # type: ignore[misc]
    """Object detection that checks an image before it decodes it."""


class LimitedZeroShotDetectionPipeline(ReadsImages, ZeroShotObjectDetectionPipeline):  # type: ignore[misc]
    """Detection of what is named, that checks an image before it decodes it."""

    def preprocess(self, inputs: Any, media_limits: MediaLimits = DEFAULT_LIMITS, **kwargs: Any) -> Any:  # type: ignore[override]
        """Yield the model's inputs for each name and one image (see the base class).

        Raises:
            ValueError: there is no name.
        """
        _check_labels(inputs["candidate_labels"])
        image = open_linked_image(inputs["image"], media_limits, kwargs.get("timeout"))
        yield from ZeroShotObjectDetectionPipeline.preprocess(self, {**inputs, "image": image}, **kwargs)


class LimitedImageTextPipeline(LimitsMedia, ImageTextToTextPipeline):  # type: ignore[misc]
    """Text about images, alone or in chats, which are checked before they are decoded; so are clips and recordings."""

    def preprocess(self, inputs: Any = None, media_limits: MediaLimits = DEFAULT_LIMITS, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the model's inputs for a chat, a text, or images and a text.

        Raises:
            ImageError, VideoError, AudioError, MediaLimitError: a file cannot be read, or is too large.
        """
        plain, timeout = super().preprocess, kwargs.get("timeout")
        if isinstance(inputs, dict) and "images" in inputs:
            return plain({**inputs, "images": open_images(inputs["images"], media_limits, timeout)}, **kwargs)
        if not hasattr(inputs, "messages"):
            return plain(inputs, **kwargs)
        extractor = getattr(self.processor, "feature_extractor", None)
        rate = getattr(extractor, "sampling_rate", None) or USUAL_RATE
        with open_messages(inputs.messages, rate, media_limits, timeout) as messages:
            model_inputs = plain(type(inputs)(messages), **kwargs)
        model_inputs["text"] = inputs  # the result names the chat as it was asked
        return model_inputs


class MergedFeaturesPipeline(ReadsImages, ImageFeatureExtractionPipeline):  # type: ignore[misc]
    """Image features without padding: each image of a batch gets the rows that it gets alone."""

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        recorders = [target.recorder for target in targets(self.model)]
        with ExitStack() as readers:
            for recorder in recorders:
                readers.enter_context(recorder.reader())
            outputs = super()._forward(model_inputs)
            results = [result for recorder in recorders if (result := recorder.result()) is not None]
        features = outputs[0]  # (B, M, C), or logits
        num_rows = torch.full((len(features),), features.shape[1])
        for result in results:
            if result.padded and result.size is not None and features.shape[:-1] == result.size.shape[:-1]:
                num_rows = (result.size[..., 0] > 0).sum(dim=1)  # padding has size 0, and stands last
        pooled = {"pooler_output": outputs["pooler_output"]} if "pooler_output" in outputs else {}
        return {"features": features, "num_rows": num_rows, **pooled}

    def postprocess(self, model_outputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the features of one image, (1, M, C)."""
        features = model_outputs["features"][:, : int(model_outputs["num_rows"])]
        pooled = model_outputs.get("pooler_output")
        return super().postprocess(BaseModelOutputWithPooling(features, pooled), **kwargs)

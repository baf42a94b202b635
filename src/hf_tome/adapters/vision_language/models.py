"""The vision-language models: what each does with the tokens of its vision tower.

Where the language model can take any number of image tokens it gets the merged ones. Where something in between needs
the grid of tokens (a projector that folds or pools neighbours, rows with line ends), the tower alone is merged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..encoders.families.family import UNMERGE, OutputAdapter
from .features import configured_layers, cropped_tokens, read_layers
from .grid import GridLayers, GridVideoLayers
from .prompts.generate import MergedGenerator
from .vlm import MergedImageModel, ProjectedImageModel, ProjectedVideoModel

SHORTEN_PROMPT = (
    OutputAdapter(
        MergedImageModel,
        description="hands the merged tokens to the language model, whose placeholders follow",
        reads=read_layers,
        num_cropped=cropped_tokens,
    ),
)
GENERATE = (OutputAdapter(MergedGenerator),)
RESTORE_GRID = (replace(UNMERGE, reads=configured_layers),)
# Calls of these may name other layers of the tower to read.
GRID_LAYERS = (*RESTORE_GRID, OutputAdapter(GridLayers, when_unmerged=True))
GRID_VIDEO_LAYERS = (*RESTORE_GRID, OutputAdapter(GridVideoLayers, when_unmerged=True))
WRAPPER: tuple[OutputAdapter, ...] = ()
"""Around a model that is listed by itself."""

PROJECTED = OutputAdapter(
    ProjectedImageModel,
    description="merges each image's projected tokens before the language model, whose placeholders follow",
)
PROJECTED_VIDEO = OutputAdapter(ProjectedVideoModel, description=f"{PROJECTED.description}; videos keep all of theirs")

VISION_LANGUAGE: dict[str, tuple[OutputAdapter, ...]] = {
    "LlavaModel": SHORTEN_PROMPT,
    "LlavaForConditionalGeneration": GENERATE,
    "VipLlavaModel": SHORTEN_PROMPT,
    "VipLlavaForConditionalGeneration": GENERATE,
    "LlavaNextModel": GRID_LAYERS,
    "LlavaNextForConditionalGeneration": WRAPPER,
    "LlavaNextVideoModel": GRID_VIDEO_LAYERS,
    "LlavaNextVideoForConditionalGeneration": WRAPPER,
    "LlavaOnevisionModel": GRID_VIDEO_LAYERS,
    "LlavaOnevisionForConditionalGeneration": WRAPPER,
    "VideoLlavaModel": GRID_VIDEO_LAYERS,
    "VideoLlavaForConditionalGeneration": WRAPPER,
    "PaliGemmaModel": SHORTEN_PROMPT,
    "PaliGemmaForConditionalGeneration": GENERATE,
    "PI0Model": RESTORE_GRID,  # its action expert reads the prefix in as many columns as the processor wrote
    "PI0ForConditionalGeneration": WRAPPER,
    "Gemma3Model": RESTORE_GRID,
    "Gemma3ForConditionalGeneration": WRAPPER,
    "Gemma3ForSequenceClassification": WRAPPER,
    "ShieldGemma2ForImageClassification": WRAPPER,
    "T5Gemma2Encoder": RESTORE_GRID,
    "T5Gemma2Model": WRAPPER,
    "T5Gemma2ForConditionalGeneration": WRAPPER,
    "T5Gemma2ForSequenceClassification": WRAPPER,
    "T5Gemma2ForTokenClassification": WRAPPER,
    "AyaVisionModel": GRID_LAYERS,
    "AyaVisionForConditionalGeneration": WRAPPER,
    "Cohere2VisionModel": RESTORE_GRID,
    "Cohere2VisionForConditionalGeneration": WRAPPER,
    "DeepseekVLModel": SHORTEN_PROMPT,
    "DeepseekVLForConditionalGeneration": GENERATE,
    "JanusModel": SHORTEN_PROMPT,
    "JanusForConditionalGeneration": GENERATE,
    "Lfm2VlModel": RESTORE_GRID,
    "Lfm2VlForConditionalGeneration": WRAPPER,
    "Idefics3Model": RESTORE_GRID,
    "Idefics3ForConditionalGeneration": WRAPPER,
    "SmolVLMModel": RESTORE_GRID,
    "SmolVLMForConditionalGeneration": WRAPPER,
    "InternVLModel": GRID_LAYERS,
    "InternVLForConditionalGeneration": WRAPPER,
}
"""The output adapters of the models around a tower, by class name."""

WITH_SOUND = "its positions count images, videos and sound in one go, and are not made for merged images there yet"

NOT_PROJECTED: dict[str, str] = {
    "VideoLlavaModel": "its images and videos share one call, and are not told apart there yet",
    "T5Gemma2Encoder": "its text encoder and its decoder's cross-attention go by the prompt as the processor wrote it",
    "PI0Model": "its action expert reads the prefix in as many columns as the processor wrote",
    "Llama4ForConditionalGeneration": "it projects its image features in its own forward, behind `get_image_features`",
    "Granite4VisionModel": "its image features come in at several layers of its language model, and none before these",
    "Qwen2_5OmniThinkerModel": WITH_SOUND,
    "Qwen3OmniMoeThinkerModel": WITH_SOUND,
    "HunYuanVLModel": "begin, row ends and end of an image are made with its tokens, and are not told apart there yet",
}
"""The vision-language models whose projected tokens are not merged, and why."""


def not_projected(model: Any) -> str:
    """Return why projected tokens of a model are not merged, so as to complete a sentence."""
    for module in model.modules():
        reason = NOT_PROJECTED.get(type(module).__name__)
        if reason is not None:
            return reason
    if getattr(getattr(model, "config", None), "vision_config", None) is None:
        return "it has no projector between a vision tower and a language model"
    return "hf_tome has no row for its projector yet"

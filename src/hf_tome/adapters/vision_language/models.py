"""The vision-language models: what each does with the tokens of its vision tower.

Where the language model can take any number of image tokens it gets the merged ones. Where something in between needs
the grid of tokens (a projector that folds or pools neighbours, rows with line ends), the tower alone is merged.
"""

from __future__ import annotations

from typing import Any

from ..encoders.family import RESTORE, Head

FEWER = (Head("image_features", says="hands the merged tokens to the language model, whose placeholders follow"),)
GENERATOR = (Head("generator"),)
GRID = (RESTORE,)
GRID_LAYERS = (RESTORE, Head("grid_layers", on_grid=True))  # whose calls may name other layers of the tower to read
GRID_VIDEO_LAYERS = (RESTORE, Head("grid_video_layers", on_grid=True))
AROUND: tuple[Head, ...] = ()  # around a model that is listed by itself

PROJECTED = Head(
    "projected", says="merges each image's projected tokens before the language model, whose placeholders follow"
)
PROJECTED_VIDEO = Head("projected_video", says=f"{PROJECTED.says}; videos keep all of theirs")

VISION_LANGUAGE: dict[str, tuple[Head, ...]] = {
    "LlavaModel": FEWER,
    "LlavaForConditionalGeneration": GENERATOR,
    "VipLlavaModel": FEWER,
    "VipLlavaForConditionalGeneration": GENERATOR,
    "LlavaNextModel": GRID_LAYERS,
    "LlavaNextForConditionalGeneration": AROUND,
    "LlavaNextVideoModel": GRID_VIDEO_LAYERS,
    "LlavaNextVideoForConditionalGeneration": AROUND,
    "LlavaOnevisionModel": GRID_VIDEO_LAYERS,
    "LlavaOnevisionForConditionalGeneration": AROUND,
    "VideoLlavaModel": GRID_VIDEO_LAYERS,
    "VideoLlavaForConditionalGeneration": AROUND,
    "PaliGemmaModel": FEWER,
    "PaliGemmaForConditionalGeneration": GENERATOR,
    "PI0Model": GRID,  # its action expert reads the prefix in as many columns as the processor wrote
    "PI0ForConditionalGeneration": AROUND,
    "Gemma3Model": GRID,
    "Gemma3ForConditionalGeneration": AROUND,
    "Gemma3ForSequenceClassification": AROUND,
    "ShieldGemma2ForImageClassification": AROUND,
    "T5Gemma2Encoder": GRID,
    "T5Gemma2Model": AROUND,
    "T5Gemma2ForConditionalGeneration": AROUND,
    "T5Gemma2ForSequenceClassification": AROUND,
    "T5Gemma2ForTokenClassification": AROUND,
    "AyaVisionModel": GRID_LAYERS,
    "AyaVisionForConditionalGeneration": AROUND,
    "Cohere2VisionModel": GRID,
    "Cohere2VisionForConditionalGeneration": AROUND,
    "DeepseekVLModel": FEWER,
    "DeepseekVLForConditionalGeneration": GENERATOR,
    "JanusModel": FEWER,
    "JanusForConditionalGeneration": GENERATOR,
    "Lfm2VlModel": GRID,
    "Lfm2VlForConditionalGeneration": AROUND,
    "Idefics3Model": GRID,
    "Idefics3ForConditionalGeneration": AROUND,
    "SmolVLMModel": GRID,
    "SmolVLMForConditionalGeneration": AROUND,
    "InternVLModel": GRID_LAYERS,
    "InternVLForConditionalGeneration": AROUND,
}
"""By class name, for the models around a tower; see `heads.HEADS`."""

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

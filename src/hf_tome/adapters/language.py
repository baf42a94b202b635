"""The vision-language models: what each does with the tokens of its vision tower.

Where the language model can take any number of image tokens it gets the merged ones. Where something in between needs
the grid of tokens (a projector that folds or pools neighbours, rows with line ends), the tower alone is merged.
"""

from __future__ import annotations

from .spec import RESTORE, Head

FEWER = (Head("image_features", says="hands the merged tokens to the language model, whose placeholders follow"),)
FEWER_TENSOR = (Head("image_features_tensor", says=FEWER[0].says),)
GENERATOR = (Head("generator"),)
GRID = (RESTORE,)
AROUND: tuple[Head, ...] = ()  # around a model that is listed by itself

VISION_LANGUAGE: dict[str, tuple[Head, ...]] = {
    "LlavaModel": FEWER,
    "LlavaForConditionalGeneration": GENERATOR,
    "VipLlavaModel": FEWER_TENSOR,
    "VipLlavaForConditionalGeneration": GENERATOR,
    "LlavaNextModel": GRID,
    "LlavaNextForConditionalGeneration": AROUND,
    "LlavaNextVideoModel": GRID,
    "LlavaNextVideoForConditionalGeneration": AROUND,
    "LlavaOnevisionModel": GRID,
    "LlavaOnevisionForConditionalGeneration": AROUND,
    "VideoLlavaModel": GRID,
    "VideoLlavaForConditionalGeneration": AROUND,
    "PaliGemmaModel": GRID,
    "PaliGemmaForConditionalGeneration": AROUND,
    "PI0Model": AROUND,
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
    "AyaVisionModel": GRID,
    "AyaVisionForConditionalGeneration": AROUND,
    "Cohere2VisionModel": GRID,
    "Cohere2VisionForConditionalGeneration": AROUND,
    "DeepseekVLModel": GRID,
    "DeepseekVLForConditionalGeneration": AROUND,
    "Lfm2VlModel": GRID,
    "Lfm2VlForConditionalGeneration": AROUND,
    "Idefics3Model": GRID,
    "Idefics3ForConditionalGeneration": AROUND,
    "SmolVLMModel": GRID,
    "SmolVLMForConditionalGeneration": AROUND,
    "InternVLModel": GRID,
    "InternVLForConditionalGeneration": AROUND,
}
"""By class name, for the models around a tower; see `heads.HEADS`."""

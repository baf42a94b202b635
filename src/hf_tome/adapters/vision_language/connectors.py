"""How vision-language models make image features, and how their language models take them in: one row each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

PIXELS = ("pixel_values",)
LAYERS = ("vision_feature_layer", "vision_feature_select_strategy")
FRAMES = ("pixel_values_videos",)
VIDEOS = (*FRAMES, *LAYERS)
GRID, VIDEO_GRID = (*PIXELS, "image_grid_thw"), (*FRAMES, "video_grid_thw")
MODE = "downsample_mode"
OLD_LAYERS = "vision_feature_layers"
"""What VipLLaVA called its feature layers, and still takes."""


@dataclass(frozen=True)
class Connector:
    """What has to be known of the model that holds tower, projector and language model.

    Attributes:
        pixels: the arguments that image features are made of.
        videos: those that video features are made of, where the model takes videos too; video tokens do not merge.
        as_tensor: the model's own forward takes the features of all images as one tensor, rather than as a list.
        tile: path of the number of tokens that every tile has, where the features of a prompt come in one piece.
        newline: path of the embedding that ends each row of an image's features, or the whole of them; such tokens
            are not merged.
        deepstack: attribute of the features with more of them, which are added behind layers of the language model.
        mrope: positions have axes for time, height and width, so that merged tokens keep the places of the grid.
        first_position: the position of a prompt's first token, in the model's own forward; `None` where the model
            counts padding in front as well, and does so in `generate` whatever positions it is given.
        tower, projector: paths of these modules, where the projector works token by token.
    """

    pixels: tuple[str, ...] = PIXELS
    videos: tuple[str, ...] = ()
    as_tensor: bool = False
    tile: str | None = None
    newline: str | None = None
    deepstack: str | None = None
    mrope: bool = False
    first_position: int | None = 0
    tower: str = "vision_tower"
    projector: str = "multi_modal_projector"


LIST = Connector()
TENSOR = Connector(as_tensor=True)
LLAVA = Connector((*PIXELS, *LAYERS, "image_sizes"))
ALIGNER = replace(TENSOR, tower="vision_model", projector="aligner")
ANYRES = replace(LLAVA, videos=VIDEOS, newline="image_newline")
GRIDS = Connector(GRID, videos=VIDEO_GRID)
QWEN = replace(GRIDS, mrope=True)
PIXTRAL = Connector((*PIXELS, LAYERS[0], "image_sizes"))
VIEWS = Connector((*PIXELS, "pixel_values_local", "num_local_patches"))
TILES = Connector((*PIXELS, "pixel_attention_mask"), tile="image_seq_len")

CONNECTORS: dict[str, Connector] = {
    "LlavaModel": LLAVA,
    "VipLlavaModel": replace(TENSOR, pixels=(*PIXELS, LAYERS[0], OLD_LAYERS)),
    "PaliGemmaModel": replace(TENSOR, first_position=1),
    "DeepseekVLModel": ALIGNER,
    "JanusModel": ALIGNER,
    "LlavaNextModel": replace(ANYRES, videos=()),
    "LlavaNextVideoModel": ANYRES,
    "LlavaOnevisionModel": replace(ANYRES, pixels=(*ANYRES.pixels, "vision_aspect_ratio", "batch_num_images")),
    "Gemma3Model": TENSOR,
    "AyaVisionModel": replace(TENSOR, pixels=(*PIXELS, *LAYERS)),
    "Cohere2VisionModel": TENSOR,
    "InternVLModel": replace(TENSOR, pixels=(*PIXELS, *LAYERS)),
    "Idefics3Model": TILES,
    "SmolVLMModel": TILES,
    "Lfm2VlModel": Connector((*PIXELS, "spatial_shapes", "pixel_attention_mask")),
    "Qwen2VLModel": QWEN,
    "Qwen2_5_VLModel": QWEN,
    "Qwen3VLModel": replace(QWEN, deepstack="deepstack_features"),
    "Qwen3VLMoeModel": replace(QWEN, deepstack="deepstack_features"),
    "Cosmos3OmniModel": replace(QWEN, deepstack="deepstack_features"),
    "Cosmos3EdgeModel": QWEN,
    "HyperCLOVAXVisionV2Model": GRIDS,
    "Qwen3_5Model": QWEN,
    "Qwen3_5MoeModel": QWEN,
    "Glm4vModel": QWEN,
    "Glm4vMoeModel": QWEN,
    "Glm46VModel": QWEN,
    "GlmOcrModel": QWEN,
    "PaddleOCRVLModel": replace(QWEN, videos=()),
    "Ernie4_5_VLMoeModel": QWEN,
    "CohereCompassModel": replace(QWEN, deepstack="deepstack_features"),
    "VideoLlama3Model": Connector((*GRID, "image_merge_sizes"), videos=(*VIDEO_GRID, "video_merge_sizes")),
    "Exaone4_5_Model": replace(GRIDS, first_position=None),
    "Kimi_K25Model": GRIDS,
    "Lfm3VlModel": GRIDS,
    "Molmo2Model": Connector(
        (*PIXELS, "image_token_pooling", "image_grids"),
        videos=(*FRAMES, "video_token_pooling", "video_grids"),
    ),
    "MiniCPMV4_6Model": Connector((*PIXELS, "target_sizes", MODE), videos=(*FRAMES, "target_sizes_videos", MODE)),
    "Gemma3nModel": TENSOR,
    "Gemma4Model": Connector(
        (*PIXELS, "image_position_ids"), videos=(*FRAMES, "video_position_ids", "num_frames_per_video")
    ),
    "Step3p7Model": VIEWS,
    "DeepseekOcr2Model": replace(VIEWS, newline="view_separator"),
    "GotOcr2Model": TENSOR,
    "DeepseekVLHybridModel": replace(TENSOR, pixels=(*PIXELS, "high_res_pixel_values")),
    "Ovis2Model": TENSOR,
    "PerceptionLMModel": TENSOR,
    "FastVlmModel": replace(TENSOR, pixels=(*PIXELS, *LAYERS)),
    "QianfanOCRModel": replace(TENSOR, pixels=(*PIXELS, *LAYERS)),
    "AriaModel": replace(TENSOR, pixels=(*PIXELS, "pixel_mask")),
    "Idefics2Model": replace(TILES, tile="config.perceiver_config.resampler_n_latents"),
    "Mistral3Model": PIXTRAL,
    "MistralLarge4Model": PIXTRAL,
    "LightOnOcrModel": Connector((*PIXELS, "image_sizes")),
}
"""By class name. Image tokens can be merged behind the projector of each (`MergeConfig(where="projected")`)."""


def connector_of(model: Any) -> Connector:
    """Return the row of a model, or of the one inside its language modelling head."""
    return CONNECTORS[type(model.base_model).__name__]

"""The rows of packed towers."""

from __future__ import annotations

from dataclasses import replace

from .family import PackedFamily

BY_ROWS = "its patches come row by row, so that those of a group are not next to each other"
BEHIND_CLASS_TOKENS = "a class token stands in front of each image's patches, so that these fall into no whole groups"
BY_CALL = "how many patches make a group is an argument of each call (`merge_sizes`)"
UNGROUPED = "its patches are read one by one, not in groups"

QWEN = PackedFamily(("qwen2_vl",), "Qwen2VisionTransformerPretrainedModel")
DEEPSTACK = replace(QWEN, readers="deepstack_merger_list")
GLM = replace(QWEN, model_types=("glm4v", "glm46v", "glmga"), tower="Glm4vVisionModel")
NORMED = replace(GLM, query_norm="q_norm", key_norm="k_norm")
SIGLIP = replace(
    QWEN,
    layers="encoder.layers",
    norm1="layer_norm1",
    attention="self_attn",
    norm2="layer_norm2",
    qkv=None,
    out="out_proj",
    gives_weights=True,
    merger=None,
)
KIMI = replace(
    QWEN, model_types=("kimi_k25",), tower="Kimi_K25VisionModel", layers="layers", qkv=None, no_groups=BY_ROWS
)
HUNYUAN = replace(
    SIGLIP,
    model_types=("hunyuan_vl",),
    tower="HunYuanVLVisionTransformer",
    layers="layers",
    out="o_proj",
    rotary=None,
    no_groups=BY_ROWS,
)

PACKED_FAMILIES: tuple[PackedFamily, ...] = (
    QWEN,
    replace(
        QWEN,
        model_types=("qwen2_5_vl", "hyperclovax_vision_v2"),
        tower="Qwen2_5_VisionTransformerPretrainedModel",
        windows=True,
    ),
    replace(
        QWEN,
        model_types=("qwen2_5_omni", "qwen2_5_omni_thinker"),
        tower="Qwen2_5OmniVisionEncoder",
        qkv=None,
        query="q",
        key="k",
        value="v",
        windows=True,
    ),
    replace(DEEPSTACK, model_types=("qwen3_vl", "cosmos3_omni"), tower="Qwen3VLVisionModel"),
    replace(DEEPSTACK, model_types=("qwen3_vl_moe",), tower="Qwen3VLMoeVisionModel"),
    replace(
        DEEPSTACK,
        model_types=("qwen3_omni_moe", "qwen3_omni_moe_thinker"),
        tower="Qwen3OmniMoeVisionEncoder",
        readers="merger_list",
    ),
    replace(DEEPSTACK, model_types=("cohere_compass",), tower="CohereCompassVisionModel"),
    replace(QWEN, model_types=("qwen3_5",), tower="Qwen3_5VisionModel"),
    replace(QWEN, model_types=("qwen3_5_moe",), tower="Qwen3_5MoeVisionModel"),
    replace(QWEN, model_types=("qwen4_exp",), tower="Qwen4ExpVisionModel"),
    GLM,
    replace(GLM, model_types=("glm4v_moe",), tower="Glm4vMoeVisionModel"),
    replace(NORMED, model_types=("glm_ocr",), tower="GlmOcrVisionModel"),
    replace(NORMED, model_types=("glm5_next",), tower="Glm5NextVisionModel"),
    replace(GLM, model_types=("glm_image",), tower="GlmImageVisionModel", rotary=None, no_groups=UNGROUPED),
    replace(NORMED, model_types=("dots3_note",), tower="Dots3NoteVisionModel"),
    replace(
        QWEN,
        model_types=("ernie4_5_vl_moe",),
        tower="Ernie4_5_VLMoeVisionTransformerPretrainedModel",
        merger=None,
    ),
    replace(QWEN, model_types=("exaone4_5",), tower="Exaone4_5_VisionModel", windows=True),
    KIMI,
    replace(KIMI, model_types=("muse_glimmer",), tower="MuseGlimmerVisionModel", windows=True),
    replace(KIMI, model_types=("muse_spark",), tower="MuseSparkVisionModel", windows=True),
    HUNYUAN,
    replace(HUNYUAN, model_types=("hy_v4_vl",), tower="HYV4VLVisionModel"),
    replace(SIGLIP, model_types=("minimax_m3_vl",), tower="MiniMaxM3VLVisionModel", layers="layers"),
    replace(SIGLIP, model_types=("paddleocr_vl",), tower="PaddleOCRVisionTransformer", no_groups=BY_ROWS),
    replace(SIGLIP, model_types=("video_llama_3",), tower="VideoLlama3VisionModel", no_groups=BY_CALL),
    replace(
        SIGLIP,
        model_types=("cosmos3_edge",),
        tower="Cosmos3EdgeVisionModel",
        rotary=None,
        scaling="scale",
        dropout="dropout",
        gives_weights=False,
    ),
    replace(
        SIGLIP,
        model_types=("inkling2", "inkling2_loop"),
        tower="Inkling2VisionModel",
        layers="layers",
        norm1="layernorm_before",
        norm2="layernorm_after",
        scale1="lambda_1",
        scale2="lambda_2",
        num_prefix_tokens=1,
        no_groups=BEHIND_CLASS_TOKENS,
    ),
)

PACKED_TOWERS: dict[str, PackedFamily] = {family.tower: family for family in PACKED_FAMILIES}
"""The rows by the class name of the module that owns the blocks."""

GROUPED_TOWERS: tuple[str, ...] = tuple(family.tower for family in PACKED_FAMILIES if family.no_groups is None)
"""The class names of the towers whose whole groups of patches merge."""

PACKED_OWNERS: tuple[str, ...] = (
    *("Qwen2VLModel", "Qwen2_5_VLModel", "Qwen2_5OmniThinkerModel", "HyperCLOVAXVisionV2Model"),
    *("Qwen3VLModel", "Qwen3VLMoeModel", "Qwen3OmniMoeThinkerModel", "Cosmos3OmniModel", "CohereCompassModel"),
    *("Qwen3_5Model", "Qwen3_5MoeModel", "Qwen4ExpModel", "Ernie4_5_VLMoeModel", "Exaone4_5_Model"),
    *("Glm4vModel", "Glm4vMoeModel", "Glm46VModel", "Glm5NextModel", "GlmOcrModel", "GlmImageModel"),
    *("Kimi_K25Model", "MuseGlimmerModel", "MuseSparkModel", "HunYuanVLModel", "HYV4VLModel", "MiniMaxM3VLModel"),
    *("PaddleOCRVLModel", "VideoLlama3Model", "Cosmos3EdgeModel", "Dots3NoteModel", "Inkling2Model"),
    "Inkling2LoopModel",
)
"""The vision-language models that own such a tower."""

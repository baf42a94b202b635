"""Vision towers that only vision-language models have."""

from __future__ import annotations

from dataclasses import replace

from ..families import sizes
from ..families.family import CLASS_TOKEN, TOKENS, Family, OutputAdapter, first_patch
from ..outputs import POOLS, LatentPool
from .image_text import CLIP, SIGLIP
from .images import VIT

LATENTS = OutputAdapter(LatentPool, "image_to_text_projection.x_attn", POOLS)

VISION_LANGUAGE_TOWERS: tuple[Family, ...] = (
    replace(
        VIT,
        model_types=("internvl_vision",),
        tower="InternVLVisionModel",
        sizes=sizes.NO_HEAD,
        heads={"InternVLVisionModel": (TOKENS,)},
        layers="encoder.layer",
        after_attention=("attention.projection_layer", "attention.projection_dropout", "lambda_1"),
        mlp=("mlp", "dropout", "lambda_2"),
        out=None,
        query_norm="q_norm",
        key_norm="k_norm",
        scaling="scale",
    ),
    replace(
        SIGLIP,
        model_types=("idefics3_vision",),
        tower="Idefics3VisionTransformer",
        sizes=sizes.NO_HEAD,
        heads={"Idefics3VisionTransformer": (TOKENS,)},
    ),
    replace(
        SIGLIP,
        model_types=("smolvlm_vision",),
        tower="SmolVLMVisionTransformer",
        sizes=sizes.NO_HEAD,
        heads={"SmolVLMVisionTransformer": (TOKENS,)},
    ),
    replace(
        SIGLIP,
        model_types=("janus_vision_model",),
        tower="JanusVisionModel",
        protected=first_patch,
        sizes=sizes.RATIO_TOWER,
        heads={"JanusVisionModel": (CLASS_TOKEN, TOKENS)},
        after_attention=("self_attn.projection_layer", "self_attn.projection_dropout"),
        out=None,
        dropout="attention_dropout",
    ),
    replace(
        CLIP,
        model_types=("kosmos_2_vision_model", "kosmos-2"),
        tower="Kosmos2VisionTransformer",
        sizes=sizes.NO_HEAD,
        heads={
            "Kosmos2VisionTransformer": (CLASS_TOKEN, TOKENS),
            "Kosmos2VisionModel": (CLASS_TOKEN, TOKENS),
            "Kosmos2Model": (LATENTS,),
            "Kosmos2ForConditionalGeneration": (LATENTS,),
        },
    ),
)
